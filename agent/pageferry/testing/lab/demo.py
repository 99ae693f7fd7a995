"""`make demo`, `pageferry demo`: carry one guest whose cold memory lies in swap, and show what
became of it.

Everything is real and of its own: two QEMUs, two agents on loopback, swap (a file, where the host
has none), memory cgroups. All of it is gone afterwards. Exit status 0 only when the guest, after
its migration, has verified every page of its memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pageferry.model.residency import ResidencyBytes
from pageferry.testing.lab.carrying import daemons_for, pageferry_carry
from pageferry.testing.lab.cleanup import LabError, orderly_termination
from pageferry.testing.lab.guests import GuestPlan
from pageferry.testing.lab.hosts import is_root
from pageferry.testing.lab.measuring import Measurement, measure
from pageferry.testing.lab.packages import (
    PackageError,
    QemuBinary,
    any_qemu,
    qemu_7,
    qemu_10,
)
from pageferry.testing.lab.settled import (
    OVERCOMMITTED_COLD_SHARE,
    overcommitted_plan,
    settled_pair,
)
from pageferry.testing.lab.swap import some_swap

MIB = 1024 * 1024

GENERATIONS = {"7.2": qemu_7, "10.0": qemu_10}


def as_json(found: Measurement, binary: QemuBinary) -> dict[str, object]:
    """The result for programs: bytes, milliseconds, microseconds."""
    return {
        "verified": found.verified,
        "cold_bytes": found.cold_bytes,
        "swap_in_bytes": found.swap.in_bytes,
        "swap_out_bytes": found.swap.out_bytes,
        "rounds": found.outcome.rounds,
        "total_ms": found.outcome.total_ms,
        "downtime_ms": found.outcome.downtime_ms,
        "hot_p99_us": found.hot_p99_us,
        "residency": {
            side: {
                when: getattr(ends, side).as_dict()
                for when, ends in (("before", found.before), ("after", found.after))
            }
            for side in ("source", "destination")
        },
        "qemu_version": binary.version_text,
    }


def show(console: Console, plan: GuestPlan, found: Measurement) -> None:
    """The result for people."""
    memory = Table(title="Where the guest's memory is", title_justify="left")
    for heading in ("", "resident MiB", "swapped MiB", "hole MiB"):
        memory.add_column(heading, justify="left" if not heading else "right")
    memory.add_row("source, before", *_mib(found.before.source))
    memory.add_row("source, after", *_mib(found.after.source), end_section=True)
    memory.add_row("destination, before", *_mib(found.before.destination))
    memory.add_row("destination, after", *_mib(found.after.destination))
    console.print(memory)
    console.print(
        f"(The guest has {plan.zero_mib} MiB of zeros. They are memory on the source and holes on"
        " the destination.)\n",
        style="dim",
    )
    numbers = Table(title="What the migration did", title_justify="left", show_header=False)
    numbers.add_column()
    numbers.add_column(justify="right")
    for name, value in _numbers(found):
        numbers.add_row(name, value)
    console.print(numbers)


def _mib(residency: ResidencyBytes) -> list[str]:
    parts = (residency.resident_bytes, residency.swapped_bytes, residency.hole_bytes)
    return [f"{part / MIB:.1f}" for part in parts]


def _numbers(found: Measurement) -> list[tuple[str, str]]:
    p99 = " / ".join(
        "?" if value is None else f"{value:.0f}"
        for value in (found.hot_p99_us[when] for when in ("before", "during", "after"))
    )
    return [
        ("cold when it began", f"{found.cold_bytes / MIB:.1f} MiB"),
        ("swap-ins, whole host", f"{found.swap.in_bytes / MIB:.1f} MiB"),
        ("swap-outs, whole host (both ends)", f"{found.swap.out_bytes / MIB:.1f} MiB"),
        ("vCPU waits for swap (major faults)", str(found.vcpu_major_faults)),
        ("rounds", str(found.outcome.rounds)),
        ("total time", f"{found.outcome.total_ms} ms"),
        ("downtime", f"{found.outcome.downtime_ms} ms"),
        ("hot touches p99, before / during / after", f"{p99} µs"),
        ("verified by the guest", _verification(found)),
    ]


def _verification(found: Measurement) -> str:
    checked = found.verification
    return f"{checked.pages} pages, {checked.bad} wrong"


def small_plan(binary: QemuBinary) -> GuestPlan:
    """For small and slow hosts. Its memory and QEMU's own, some 40 MiB, exceed the limit
    together."""
    return GuestPlan(binary, ram_mib=96, cold_mib=64, hot_mib=2, zero_mib=2, pace=1, limit_mib=72)


SMALL_COLD_SHARE = 0.5
"""To be in swap at the start: what the limit alone brings about. Where more is squeezed out QEMU
reads its own code again and again."""


def carry_one(
    console: Console, binary: QemuBinary, *, small: bool = False
) -> tuple[GuestPlan, Measurement]:
    """Start a guest, put its cold memory into swap, and carry it over. Raises LabError."""
    plan = small_plan(binary) if small else overcommitted_plan(binary)
    cold_share = SMALL_COLD_SHARE if small else OVERCOMMITTED_COLD_SHARE
    console.print(
        f"A guest of {plan.ram_mib} MiB under QEMU {binary.version_text} within a memory cgroup of"
        f" {plan.limit_mib} MiB: {plan.cold_mib} MiB cold, {plan.hot_mib} MiB hot."
    )
    console.print("Filling its memory, and letting the kernel swap the cold part out ...")
    with settled_pair(plan, cold_share) as guest, daemons_for(guest) as (source, destination):
        console.print("Migrating ...\n")
        return plan, measure(guest, pageferry_carry(source, destination))


def main() -> int:
    """Entry point of ``make demo``. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    parser.add_argument("--qemu", choices=sorted(GENERATIONS), help="default: the installed one")
    parser.add_argument("--small", action="store_true", help="a guest of 96 MiB instead of 1 GiB")
    arguments = parser.parse_args()
    console = Console()
    if not is_root():
        print(
            "the demo swaps, makes memory cgroups and traces QEMU: run it as root", file=sys.stderr
        )
        return 1
    try:
        with orderly_termination(), some_swap():
            binary = GENERATIONS.get(arguments.qemu, any_qemu)()
            plan, found = carry_one(console, binary, small=arguments.small)
    except (LabError, PackageError) as error:
        print(f"the demo could not be set up: {error}", file=sys.stderr)
        return 1
    show(console, plan, found)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(found, binary), indent=2) + "\n")
    if not found.outcome.completed:
        print(f"the migration did not complete: {found.outcome.error}", file=sys.stderr)
    elif not found.verified:
        print("the guest found wrong memory: this is a bug, please report it", file=sys.stderr)
    return 0 if found.verified else 1


if __name__ == "__main__":
    sys.exit(main())
