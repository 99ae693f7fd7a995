"""What is measured around one migration, in the same way whoever carries the guest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pageferry.model.residency import ResidencyBytes
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.guests import FreestandingGuest
from pageferry.testing.lab.hosts import SwapTraffic, swap_traffic
from pageferry.testing.lab.latency import Sample, Verification, percentile_us

BEFORE_S = 3.0
AFTER_S = 3.0
"""How long the hot touches are watched before and after: 3000 batches each."""

BUSY_RATIO = 3.0
"""A tenth of a second counts as disturbed when its p99 is this many times that of before."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the carrier itself says: whether it worked, and its own numbers (None: it has none)."""

    completed: bool
    error: str = ""
    total_ms: float | None = None
    downtime_ms: float | None = None
    rounds: int | None = None


@dataclass(frozen=True, slots=True)
class Ends:
    """The same measurement on both ends."""

    source: ResidencyBytes
    destination: ResidencyBytes


@dataclass(frozen=True, slots=True)
class Measurement:
    """One migration, measured from outside. `total_s` is wall-clock around the carrier's call."""

    outcome: Outcome
    total_s: float
    cold_bytes: int
    swap: SwapTraffic
    vcpu_major_faults: int
    hot_samples: Mapping[str, Sequence[Sample]]
    """What the guest said of its hot touches ``before``, ``during`` and ``after``."""
    tsc_khz: int
    disturbed_s: float
    before: Ends
    after: Ends
    verification: Verification

    @property
    def hot_p99_us(self) -> dict[str, float | None]:
        """The 99th percentile of a batch of 64 hot touches; None where there was none."""
        return {
            when: percentile_us(samples, 0.99, self.tsc_khz)
            for when, samples in self.hot_samples.items()
        }

    @property
    def source_growth_bytes(self) -> int:
        """By how much the source's RAM file grew: holes that were read."""
        return self.before.source.hole_bytes - self.after.source.hole_bytes

    @property
    def verified(self) -> bool:
        """Whether the guest was carried, checked every page on the destination, and found none
        bad."""
        return self.outcome.completed and self.memory_is_right

    @property
    def memory_is_right(self) -> bool:
        """Whether the guest checked every page, on whichever side it runs, and found none bad."""
        return self.verification.pages > 0 and self.verification.bad == 0


def measure(
    guest: FreestandingGuest,
    carry: Callable[[], Outcome],
    before_s: float = BEFORE_S,
    after_s: float = AFTER_S,
) -> Measurement:
    """Measure `carry`, which is to move the settled `guest` to its destination.

    The guest verifies at the end wherever it runs then; verification reads everything back from
    swap, so all else is measured before it.
    """
    destination = guest.destination
    if destination is None:
        raise LabError("start the destination first")
    guest.wait_samples(round(before_s * 10))
    begin_s = time.monotonic()
    before = Ends(guest.source.residency(), destination.residency())
    cold_bytes = before.source.swapped_bytes
    faults = guest.source.vcpu_major_faults()
    swap_before = swap_traffic()
    start_s = time.monotonic()
    outcome = carry()
    end_s = time.monotonic()
    swap = swap_traffic() - swap_before
    faults = _faults(guest) - faults
    after = Ends(guest.source.residency(), destination.residency())
    if outcome.completed:
        guest.wait_samples(round(after_s * 10))
    last_s = time.monotonic()
    samples = {
        "before": guest.samples_between(begin_s - before_s, begin_s),
        "during": guest.samples_between(start_s, end_s),
        "after": guest.samples_between(end_s, last_s) if outcome.completed else [],
    }
    usual_us = percentile_us(samples["before"], 0.99, guest.layout.tsc_khz)
    return Measurement(
        outcome=outcome,
        total_s=end_s - start_s,
        cold_bytes=cold_bytes,
        swap=swap,
        vcpu_major_faults=faults,
        hot_samples=samples,
        tsc_khz=guest.layout.tsc_khz,
        disturbed_s=_disturbed_s(guest, start_s, end_s, usual_us),
        before=before,
        after=after,
        verification=guest.verify(),
    )


def _faults(guest: FreestandingGuest) -> int:
    # A source QEMU that has ended took its counters with it.
    return guest.source.vcpu_major_faults() if guest.source.process.poll() is None else 0


def _disturbed_s(
    guest: FreestandingGuest, begin_s: float, end_s: float, usual_us: float | None
) -> float:
    if usual_us is None:
        return 0.0
    disturbed = 0.0
    for sample in guest.samples_between(begin_s, end_s):
        p99 = guest.hot_p99_us(sample.host_time_s, sample.host_time_s)
        if p99 is not None and p99 > BUSY_RATIO * usual_us:
            disturbed += sample_seconds(guest, sample.host_time_s)
    return disturbed


def sample_seconds(guest: FreestandingGuest, host_time_s: float) -> float:
    """How long the guest took for the sample that arrived then: 0.1 s unless it was held up."""
    earlier = [sample.host_time_s for sample in guest.samples if sample.host_time_s < host_time_s]
    return host_time_s - earlier[-1] if earlier else 0.0
