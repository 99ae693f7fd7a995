"""The results as tables: for a terminal, and as Markdown for the documents. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

from pageferry.testing.bench.results import Results
from pageferry.testing.bench.scenarios import MULTIFD, PAGEFERRY
from pageferry.testing.bench.statistics import ratio

MIB = 1024 * 1024

FILE_WIDTH = 160
"""Columns of the tables when they do not go to a terminal."""

NOTHING = "–"

LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text: the first *names* columns are names, the others numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


Cell = Callable[[Results, str, str], str]


def speed_grid(results: Results) -> Grid:
    """How long, how fast, how long the guest stood still."""
    columns: list[tuple[str, Cell]] = [
        ("runs", _runs),
        ("total, s", _figure("total_s", "{:.2f}")),
        ("× multifd", _against(MULTIFD, "total_s")),
        ("of the limit", _of_limit),
        ("start, s", _figure("start_s", "{:.1f}")),
        ("MiB/s", _figure("rate_mib_per_s", "{:.0f}")),
        ("bulk MiB/s", _figure("bulk_mib_per_s", "{:.0f}")),
        ("downtime, ms", _figure("downtime_ms", "{:.0f}")),
        ("silence, ms", _figure("longest_silence_ms", "{:.0f}")),
        ("wire, MiB", _figure("wire_mib", "{:.0f}")),
    ]
    return _grid("Time", results, list(results.titles), columns)


def memory_grid(results: Results) -> Grid:
    """What became of the memory, and what the guest noticed: where a part of it is in swap, or not
    there at all."""
    columns: list[tuple[str, Cell]] = [
        ("hot p99, during ÷ before", _figure("hot_p99_ratio", "{:.2f}")),
        ("disturbed, s", _figure("disturbed_s", "{:.1f}")),
        ("vCPU waits", _figure("vcpu_major_faults", "{:.0f}")),
        ("swap-in ÷ cold", _figure("swap_in_per_cold", "{:.2f}")),
        ("source grew, MiB", _figure("source_growth_mib", "{:.0f}")),
        ("resident before, MiB", _figure("source_resident_before_mib", "{:.0f}")),
        ("destination resident", _figure("destination_resident_mib", "{:.0f}")),
        ("swapped", _figure("destination_swapped_mib", "{:.0f}")),
        ("holes", _figure("destination_hole_mib", "{:.0f}")),
    ]
    names = [
        name
        for name in results.titles
        if (results.median(name, PAGEFERRY, "cold_mib") or 0) > 1 or name == "sparse"
    ]
    grid = _grid("Memory", results, names, columns)
    rows = [row for row in grid.rows if row[1] != LIMIT]
    return Grid(grid.title, grid.headings, rows, 2)


def as_rich(grid: Grid) -> Table:
    """For a terminal."""
    table = Table(title=grid.title, title_justify="left")
    for number, heading in enumerate(grid.headings):
        table.add_column(heading, justify="left" if number < grid.names else "right")
    for number, row in enumerate(grid.rows):
        below = grid.rows[number + 1][0] if number + 1 < len(grid.rows) else None
        above = grid.rows[number - 1][0] if number else None
        first = "" if row[0] == above else row[0]
        table.add_row(first, *row[1:], end_section=grid.names > 1 and row[0] != below)
    return table


def as_markdown(grid: Grid) -> str:
    """For a document."""
    rule = ["---" if number < grid.names else "--:" for number in range(len(grid.headings))]
    lines = [grid.headings, rule, *grid.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _grid(
    title: str, results: Results, names: Sequence[str], columns: Sequence[tuple[str, Cell]]
) -> Grid:
    rows = [
        [name, contender, *(cell(results, name, contender) for _heading, cell in columns)]
        for name in names
        for contender in _in_order(results.contenders(name))
    ]
    return Grid(title, ["guest", "by", *(heading for heading, _cell in columns)], rows, 2)


def _in_order(contenders: Sequence[str]) -> list[str]:
    """The limit last."""
    return sorted(contenders, key=lambda contender: contender == LIMIT)


def _runs(results: Results, scenario: str, contender: str) -> str:
    runs = results.of(scenario, contender)
    failed = sum(not run.completed for run in runs)
    return f"{len(runs)}, {failed} did not end" if failed else str(len(runs))


def _figure(name: str, layout: str) -> Cell:
    def cell(results: Results, scenario: str, contender: str) -> str:
        value = results.median(scenario, contender, name)
        return NOTHING if value is None else layout.format(value)

    return cell


def _against(other: str, name: str) -> Cell:
    def cell(results: Results, scenario: str, contender: str) -> str:
        value = ratio(*(results.median(scenario, who, name) for who in (contender, other)))
        return NOTHING if value is None else f"{value:.2f}"

    return cell


def _of_limit(results: Results, scenario: str, contender: str) -> str:
    value = share_of_limit(results, scenario, contender)
    return NOTHING if value is None else f"{value:.2f}"


def share_of_limit(results: Results, scenario: str, contender: str) -> float | None:
    """The time that the machine needs for the same memory, divided by the contender's. At a limit
    of paging, the same swapped memory: what of it was swapped differs from run to run.
    """
    total_s = results.median(scenario, contender, "total_s")
    rate = results.median(scenario, LIMIT, "rate_mib_per_s")
    swapped = results.median(scenario, LIMIT, "swap_in_mib") is not None
    mib = results.median(scenario, contender, "cold_mib" if swapped else "data_mib")
    if mib is None or contender == LIMIT:
        return None
    return ratio(ratio(mib, rate), total_s)
