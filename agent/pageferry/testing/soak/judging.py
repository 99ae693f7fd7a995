"""What is right and what is wrong after a step. Pure: facts in, findings out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pageferry.model.residency import ResidencyBytes

MIB = 1024 * 1024

SLACK_BYTES = 32 * MIB
"""What does not grow with the guest: QEMU's own memory and the worker's (26 MiB) are in the guest's
cgroup too, which at its limit then holds so much less of the guest (21 MiB on one side only, seen
once in 250 hops); and the guest runs on, and is paged out on, while both ends are read. As much as
test_overcommitted.py allows in bytes."""

RESIDENT_SHARE = 0.1
SWAPPED_SHARE = 0.05
"""As in tests/migration/test_overcommitted.py."""


class Kind(StrEnum):
    """What kind of wrong a finding is."""

    LOST = "lost"
    DOUBLED = "doubled"
    CORRUPT = "corrupt"
    LEAKED = "leaked"
    MISPLACED = "misplaced"
    """Residency that is not the source's."""
    FAILED = "failed"
    """Nothing was done to the migration, and it did not carry its guest."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, in words."""

    kind: Kind
    text: str


@dataclass(slots=True)
class Tally:
    """What a soak has done and found so far."""

    hops: int = 0
    faults: int = 0
    cancels: int = 0
    steps: int = 0
    recovered: int = 0
    by_fault: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def count(self, fault: str, *, struck: bool, carried: bool) -> None:
        """One step is over: whether its fault came in time, and whether the guest was carried."""
        self.steps += 1
        self.hops += carried
        if fault == "cancel":
            self.cancels += struck
        elif fault != "none":
            self.faults += struck
        of_fault = self.by_fault.setdefault(fault, {"struck": 0, "carried": 0, "kept": 0})
        of_fault["struck"] += struck
        of_fault["carried" if carried else "kept"] += 1

    def as_json(self) -> dict[str, Any]:
        """For programs. ``hops``: migrations that carried their guest."""
        wrong = {kind.value: sum(found.kind is kind for found in self.findings) for kind in Kind}
        return {
            "hops": self.hops,
            "faults": self.faults,
            "cancels": self.cancels,
            **wrong,
            "steps": self.steps,
            "recovered": self.recovered,
            "by_fault": self.by_fault,
            "findings": [f"{found.kind.value}: {found.text}" for found in self.findings],
        }


def owners_wrong(states: Mapping[str, str]) -> list[Finding]:
    """*states*: each QEMU's run state, or ``gone``. Exactly one must run the guest."""
    running = [name for name, state in states.items() if state == "running"]
    words = ", ".join(f"{name} is {state}" for name, state in states.items())
    if not running:
        return [Finding(Kind.LOST, f"the guest runs nowhere: {words}")]
    if len(running) > 1:
        return [Finding(Kind.DOUBLED, f"the guest runs twice: {words}")]
    return []


Interval = tuple[int, int | None]


def running_intervals(
    events: Iterable[Mapping[str, Any]], *, runs_from_us: int | None
) -> list[Interval]:
    """When the guest ran in a QEMU, in us, by its STOP and RESUME events; None: it still runs.

    *runs_from_us* is set when it ran before the first event.
    """
    found: list[Interval] = []
    begin_us = runs_from_us
    for event in events:
        at_us = _time_us(event)
        if event.get("event") == "RESUME" and begin_us is None:
            begin_us = at_us
        elif event.get("event") == "STOP" and begin_us is not None:
            found.append((begin_us, at_us))
            begin_us = None
    if begin_us is not None:
        found.append((begin_us, None))
    return found


def overlaps(one: Sequence[Interval], other: Sequence[Interval]) -> list[Finding]:
    """The guest must not run in both at any time; both clocks are this host's."""
    return [
        Finding(Kind.DOUBLED, f"the guest ran in both QEMUs at once: {a} and {b} (us)")
        for a, b in itertools.product(one, other)
        if _ends_after(a, b[0]) and _ends_after(b, a[0])
    ]


def speakers_wrong(speakers: Sequence[int], source: int, destination: int) -> list[Finding]:
    """Which QEMUs' guest spoke during a step, in their order: not the source after the
    destination.
    """
    wanted = [each for each in speakers if each in (source, destination)]
    if destination in wanted and source in wanted[wanted.index(destination) :]:
        return [Finding(Kind.DOUBLED, "the source's guest spoke after the destination's")]
    return []


def residency_wrong(
    source: ResidencyBytes, destination: ResidencyBytes, zero_bytes: int
) -> list[Finding]:
    """The destination's memory lies as the source's does, but that up to *zero_bytes* of zeros
    are holes there.
    """
    resident = _within(
        destination.resident_bytes, source.resident_bytes, zero_bytes, RESIDENT_SHARE
    )
    swapped = _within(destination.swapped_bytes, source.swapped_bytes, zero_bytes, SWAPPED_SHARE)
    return [
        Finding(Kind.MISPLACED, f"{what}: {there >> 20} MiB, the source has {here >> 20} MiB")
        for what, right, here, there in (
            ("resident", resident, source.resident_bytes, destination.resident_bytes),
            ("swapped", swapped, source.swapped_bytes, destination.swapped_bytes),
        )
        if not right
    ]


def _within(there: int, here: int, zero_bytes: int, share: float) -> bool:
    slack = share * here + SLACK_BYTES
    return here - zero_bytes - slack <= there <= here + slack


def _ends_after(interval: Interval, at_us: int) -> bool:
    return interval[1] is None or interval[1] > at_us


def _time_us(event: Mapping[str, Any]) -> int:
    stamp = event["timestamp"]
    return int(stamp["seconds"]) * 1_000_000 + int(stamp["microseconds"])
