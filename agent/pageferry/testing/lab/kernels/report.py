"""Tables of what testing the series found, for people."""

from __future__ import annotations

from collections.abc import Sequence

from pageferry.testing.lab.kernels.record import AGENT, SELFTEST, Result


def cost_table(result: Result) -> list[str]:
    """Lines of a table: million instructions per GiB, unpatched and patched."""
    before, after = result.cost.get("unpatched", {}), result.cost.get("patched", {})
    lines = [f"{'way':14} {'memory':10} {'state':52} {'unpatched':>10} {'patched':>10}"]
    for key in sorted({*before, *after}):
        way, memory, state = key.split()
        values = [
            f"{costs[key] / 1e6:10.1f}" if key in costs else f"{'-':>10}"
            for costs in (before, after)
        ]
        lines.append(f"{way:14} {memory:10} {state.replace(',', ', '):52} {' '.join(values)}")
    return lines


REPORTED_STATES = (
    ("anonymous", "present", "private memory, present"),
    ("anonymous", "swapped", "private memory, swapped"),
    ("anonymous", "hole", "private memory, hole"),
    ("shmem", "present", "shared, present, nothing in swap"),
    ("shmem", "hole", "shared, hole, nothing in swap"),
    ("shmem", "present,one-page-of-the-file-swapped", "shared, present, one page in swap"),
    ("shmem", "hole,one-page-of-the-file-swapped", "shared, hole, one page in swap"),
    (
        "shmem",
        "cached,one-page-of-the-file-swapped,no-page-tables",
        "shared, cached, not mapped, one page in swap",
    ),
    ("shmem", "swapped", "shared, swapped"),
    ("shmem", "swapped,no-page-tables", "shared, swapped, without page tables"),
    ("shmem", "every-second-page-swapped", "shared, every second page swapped"),
    (
        "shmem",
        "every-second-page-swapped,no-page-tables",
        "the same, without page tables",
    ),
)


def markdown_costs(result: Result) -> list[str]:
    """The table for people: million instructions per GiB, with the series (and without)."""
    before, after = result.cost["unpatched"], result.cost["patched"]

    def both(way: str, memory: str, state: str) -> str:
        key = f"{way} {memory} {state}"
        if key not in after:
            return ""
        return f"{after[key] / 1e6:.1f} ({before[key] / 1e6:.1f})"

    def one(way: str, memory: str, state: str) -> str:
        key = f"{way} {memory} {state}"
        return f"{after[key] / 1e6:.1f}" if key in after else ""

    lines = [
        "| | read, with the series (without) | scan | scan for written |"
        " mincore + lseek | cachestat |",
        "|---|---|---|---|---|---|",
    ]
    for memory, state, words in REPORTED_STATES:
        cells = [both(way, memory, state) for way in ("read", "scan", "scan-written")]
        cells += [one(way, memory, state) for way in ("mincore+lseek", "cachestat")]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return lines


def markdown_results(results: Sequence[Result]) -> list[str]:
    """The table for people: checks passed, a column for each series."""

    def cell(result: Result, variant: str, program: str) -> str:
        outcome = result.checks.get(variant, {}).get(program)
        if outcome is None:
            return ""
        skipped = f", {len(outcome.skipped)} skipped" if outcome.skipped else ""
        return f"{outcome.passed} of {outcome.passed + len(outcome.failed)}{skipped}"

    lines = [
        f"| | {' | '.join(result.series for result in results)} |",
        f"|{'---|' * (len(results) + 1)}",
    ]
    for words, variant, program in (
        ("selftest, with the series", "patched", SELFTEST),
        ("the same, without", "unpatched", SELFTEST),
        ("the same, with the kernel's own checks", "debug", SELFTEST),
        ("pageferry's code, with the series", "patched", AGENT),
        ("the same, without", "unpatched", AGENT),
        ("the same, with the kernel's own checks", "debug", AGENT),
        ("the kernel's `pagemap_ioctl`, with (as without)", "patched", "pagemap_ioctl"),
        ("the kernel's `soft-dirty`, with (as without)", "patched", "soft-dirty"),
    ):
        cells = [cell(result, variant, program) for result in results]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return lines
