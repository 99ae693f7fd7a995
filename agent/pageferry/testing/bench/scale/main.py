"""`make bench-scale`: measure guests of 1 to 256 GiB, and print and write what they cost."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from pageferry.testing.bench.locking import locked
from pageferry.testing.bench.machine import machine, machine_text, revision
from pageferry.testing.bench.scale.carried import carry_of_size
from pageferry.testing.bench.scale.costs import FULL_STEP_BYTES, costs_of
from pageferry.testing.bench.tables import FILE_WIDTH, Grid, as_markdown, as_rich
from pageferry.testing.lab.cleanup import LabError, orderly_termination
from pageferry.testing.lab.hosts import is_root
from pageferry.testing.lab.packages import PackageError, qemu_10
from pageferry.testing.lab.swap import some_swap

SIZES_GIB = (1, 16, 64, 256)
QUICK_SIZES_GIB = (1, 16)

QEMU_SIZES_GIB = (1, 64)
QUICK_QEMU_SIZES_GIB = (1, 16)

COSTS = {
    "holes_ms": "find holes, ms",
    "cachestat_ms": "cachestat, ms",
    "mincore_ms": "mincore, ms",
    "pagemap_ms": "pagemap, ms",
    "arm_ms": "arm, ms",
    "first_write_us": "first write to a tracked page, µs more",
    "scan_clean_ms": "scan, nothing written, ms",
    "scan_written_ms": "scan, what exists written, ms",
    "combine_ms": "combine sets, ms",
    "disarm_ms": "disarm, ms",
    "page_tables_mib": "page tables, MiB",
    "set_mib": "one page set, MiB",
}

CARRIED = {
    "total_ms": "total, ms",
    "downtime_ms": "downtime, ms",
    "source_worker_mib": "source's worker, MiB",
    "destination_worker_mib": "destination's worker, MiB",
    "worker_page_tables_mib": "a worker's page tables, MiB",
    "qemu_page_tables_mib": "QEMU's page tables, MiB",
}

Row = Mapping[str, float]


def cost_grid(
    rows: Sequence[Row], names: Mapping[str, str], title: str, full: Row | None = None
) -> Grid:
    """What is measured line by line, sizes across, then what each further GiB costs. *full*: a
    guest that uses all its memory, in the last column.
    """
    sizes = [f"{row['size_gib']:.0f} GiB" for row in rows]
    last = [] if full is None else [full]
    lines = [
        [
            label,
            *(f"{row[name]:.2f}" for row in rows),
            _slope(rows, name),
            *(f"{row[name]:.2f}" for row in last),
        ]
        for name, label in names.items()
        if all(name in row for row in rows)
    ]
    filled = [f"{row['size_gib']:.0f} GiB, all in use" for row in last]
    return Grid(title, ["", *sizes, "each further GiB", *filled], lines)


def _slope(rows: Sequence[Row], name: str) -> str:
    """From the smallest to the largest, so that what does not grow falls out."""
    first, last = rows[0], rows[-1]
    more_gib = last["size_gib"] - first["size_gib"]
    return f"{(last[name] - first[name]) / more_gib:.3f}" if more_gib else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``make bench-scale``. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="hold this lock while measuring")
    options = parser.parse_args(arguments)
    if not is_root():
        print("write tracking needs root", file=sys.stderr)
        return 1
    try:
        with orderly_termination():
            return _measure(options)
    except (LabError, PackageError) as error:
        print(f"the bench could not be set up: {error}", file=sys.stderr)
        return 1


def _measure(options: argparse.Namespace) -> int:
    binary = qemu_10()
    costs, carried = [], []
    for size_gib in QUICK_SIZES_GIB if options.quick else SIZES_GIB:
        with locked(options.lock), some_swap():
            costs.append(costs_of(size_gib))
    with locked(options.lock), some_swap():
        full = costs_of(1, FULL_STEP_BYTES)
    for size_gib in QUICK_QEMU_SIZES_GIB if options.quick else QEMU_SIZES_GIB:
        with locked(options.lock), some_swap():
            carried.append(carry_of_size(binary, size_gib))
    found = machine(binary)
    grids = [
        cost_grid(costs, COSTS, "Costs of a guest's size, one page of each MiB in use", full),
        cost_grid(carried, CARRIED, "Guests that use 80 MiB, carried"),
    ]
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for grid in grids:
        console.print(as_rich(grid))
    if options.json is not None:
        document = {
            "machine": found,
            "revision": revision(),
            "costs": costs,
            "full": full,
            "carried": carried,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.tables is not None:
        parts = [
            "<!-- Written by `make bench-scale TABLES=FILE`. -->",
            f"Measured on {machine_text(found)}; pageferry {revision()}.",
            *(f"### {grid.title}\n\n{as_markdown(grid).rstrip()}" for grid in grids),
        ]
        options.tables.write_text("\n\n".join(parts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
