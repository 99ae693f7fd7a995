"""What came out of testing a series: kept beside the patches, by the digest that it is of.

A record says what was seen of exactly one state of the patches. Once they change, it is of
something else, and ``make kernel-check`` says so until the series has been tested anew.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pageferry.testing.lab.kernels.series import Series, patches_folder

SELFTEST = "pagemap_shmem_swap"
AGENT = "agent"
KERNELS_OWN = ("pagemap_ioctl", "soft-dirty")

PAGES_PER_GIB = 1 << 18

Costs = dict[str, int]
"""Instructions per GiB by "way memory state"."""


@dataclass(slots=True)
class Outcome:
    """How one program of the guest fared."""

    passed: int
    failed: list[str]
    skipped: list[str]
    ended: str

    def summary(self) -> str:
        """In a few words."""
        total = self.passed + len(self.failed)
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"{self.passed} of {total} passed{skipped} ({self.ended})"


@dataclass(slots=True)
class Result:
    """All that was seen of one series. Keys of the maps are variants, then programs."""

    series: str
    digest: str
    kernel: str
    compiler: str
    qemu: str
    checks: dict[str, dict[str, Outcome]] = field(default_factory=dict)
    complaints: dict[str, list[str]] = field(default_factory=dict)
    build_seconds: dict[str, int] = field(default_factory=dict)
    cost: dict[str, Costs] = field(default_factory=dict)
    mutants: dict[str, int] = field(default_factory=dict)
    """For each wrong variant, how many checks of the selftest caught it."""

    def faults(self, series: Series) -> list[str]:
        """What should not be so, in whole sentences; of what was tested, and complete or not."""
        found = [
            f"{variant}: the kernel complained: {line}"
            for variant, lines in self.complaints.items()
            for line in lines
        ]
        for variant, programs in self.checks.items():
            found += self._faults_of(series, variant, programs)
        if {"patched", "unpatched"} <= set(self.checks):
            found += self._changed()
        found += [
            f"no check caught the wrong variant {name!r}"
            for name, n in self.mutants.items()
            if not n
        ]
        return found

    def _faults_of(self, series: Series, variant: str, programs: dict[str, Outcome]) -> list[str]:
        found = []
        agent = programs.get(AGENT)
        if agent is None or agent.failed or agent.ended != "exit 0" or not agent.passed:
            found.append(f"{variant}: pageferry's own code failed: {agent}")
        selftest = programs.get(SELFTEST)
        if selftest is None:
            return [*found, f"{variant}: the selftest did not run"]
        if variant == "unpatched":
            if not selftest.failed:
                found.append("unpatched: the selftest passes, so it shows nothing")
            return found
        if selftest.failed or selftest.ended != "exit 0":
            found.append(f"{variant}: the selftest failed: {selftest.failed or selftest.ended}")
        excess = [name for name in selftest.skipped if not may_skip(series, name)]
        if excess or not selftest.passed:
            found.append(f"{variant}: the selftest skipped {excess or 'everything'}")
        return found

    def _changed(self) -> list[str]:
        before, after = self.checks["unpatched"], self.checks["patched"]
        return [
            f"the kernel's own {name} says something else with the series: {after.get(name)}"
            for name in KERNELS_OWN
            if before.get(name) != after.get(name)
        ]


def may_skip(series: Series, name: str) -> bool:
    """Whether this kernel cannot have what that check is about."""
    if series.has_scan:
        return False
    # No PAGEMAP_SCAN before 6.7; huge pages were split before they were swapped out until 6.12.
    return name.startswith("scan: ") or name in (
        "read: write-protecting what is swapped",
        "read: within large swap entries",
    )


def record_path(series: Series) -> Path:
    """Where the record of a series is kept."""
    return patches_folder() / "results" / f"{series.name}.json"


def save(series: Series, result: Result) -> None:
    """Keep a result. Parts that were not tested this time stay, if they are of the same patches."""
    old = load(series)
    if old is not None and old.digest == result.digest:
        for name in ("checks", "complaints", "build_seconds", "cost", "mutants"):
            setattr(result, name, {**getattr(old, name), **getattr(result, name)})
        result.compiler = result.compiler or old.compiler
        result.qemu = result.qemu or old.qemu
    path = record_path(series)
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(asdict(result), indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def load(series: Series) -> Result | None:
    """The record of a series; None when there is none."""
    try:
        text = record_path(series).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    values: dict[str, Any] = json.loads(text)
    values["checks"] = {
        variant: {name: Outcome(**outcome) for name, outcome in programs.items()}
        for variant, programs in values["checks"].items()
    }
    return Result(**values)


def record_faults(series: Series) -> list[str]:
    """Why the record does not vouch for the present patches; empty when it does.

    Empty, too, for a series that is not said to have been booted.
    """
    if not series.booted:
        return []
    again = f"run `make kernel-test SERIES={series.name} RECORD=yes`"
    result = load(series)
    if result is None:
        return [f"{series.name} was never tested; {again}"]
    if result.digest != series.digest:
        return [f"{series.name} has changed since it was tested; {again}"]
    wanted = {"unpatched", "patched", *(["debug"] if series.debug else [])}
    missing = wanted - set(result.checks)
    missing |= {"unpatched", "patched"} - set(result.cost)
    found = [f"{series.name} was not tested completely ({', '.join(sorted(missing))})"] * bool(
        missing
    )
    return found + [f"{series.name}: {fault}" for fault in result.faults(series)]
