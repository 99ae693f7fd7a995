"""Figures and timelines of one run, out of what was measured and seen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from pageferry.testing.bench.results import Timeline
from pageferry.testing.bench.sampling import Sampler, Sight
from pageferry.testing.bench.statistics import rate_between, ratio
from pageferry.testing.lab.guests import FreestandingGuest
from pageferry.testing.lab.latency import percentile_us
from pageferry.testing.lab.measuring import Measurement

MIB = 1024 * 1024

START_BYTES = MIB
"""More than any handshake: from here on memory is on the wire."""

REPORT_S = 0.1
"""A running guest says something this often."""


@dataclass(frozen=True, slots=True)
class Span:
    """When a migration began and ended, and until when the guest was watched afterwards: then it
    verifies its memory, says nothing meanwhile, and pages everything in. Of ``time.monotonic``.
    """

    begin_s: float
    end_s: float
    last_s: float

    def sights(self, sampler: Sampler) -> list[Sight]:
        """What was seen up to the end of the watch."""
        return [sight for sight in sampler.sights if sight.at_s <= self.last_s]


def figures_of(
    found: Measurement, guest: FreestandingGuest, sampler: Sampler, span: Span
) -> dict[str, float | None]:
    """The figures of one migration."""
    outcome, after = found.outcome, found.after.destination
    sights = span.sights(sampler)
    during = [sight for sight in sights if span.begin_s <= sight.at_s <= span.end_s]
    before = found.before.source
    data_mib = (before.resident_bytes + before.swapped_bytes) / MIB
    p99 = found.hot_p99_us
    return {
        "total_s": found.total_s,
        "reported_total_s": None if outcome.total_ms is None else outcome.total_ms / 1000,
        "start_s": _start_s(during),
        "downtime_ms": outcome.downtime_ms,
        "longest_silence_ms": 1000 * longest_silence_s(_times(guest), span.begin_s, span.last_s),
        "rounds": outcome.rounds,
        "data_mib": data_mib,
        "rate_mib_per_s": data_mib / found.total_s,
        "bulk_mib_per_s": _bulk_rate(during),
        "wire_mib": _wire_mib(sights),
        "cold_mib": found.cold_bytes / MIB,
        "swap_in_mib": found.swap.in_bytes / MIB,
        "swap_out_mib": found.swap.out_bytes / MIB,
        "swap_in_per_cold": ratio(found.swap.in_bytes, found.cold_bytes),
        "vcpu_major_faults": found.vcpu_major_faults,
        "hot_p99_before_us": p99["before"],
        "hot_p99_during_us": p99["during"],
        "hot_p99_ratio": ratio(p99["during"], p99["before"]),
        "disturbed_s": found.disturbed_s,
        "source_resident_before_mib": before.resident_bytes / MIB,
        "source_swapped_before_mib": before.swapped_bytes / MIB,
        "destination_resident_mib": after.resident_bytes / MIB,
        "destination_swapped_mib": after.swapped_bytes / MIB,
        "destination_hole_mib": after.hole_bytes / MIB,
        "source_growth_mib": found.source_growth_bytes / MIB,
        "sampler_share": ratio(sampler.cpu_s, sampler.lasted_s),
    }


def timelines_of(guest: FreestandingGuest, sampler: Sampler, span: Span) -> dict[str, Timeline]:
    """What the pictures are drawn from: ``host``, seen from outside, and ``guest``, its touches."""
    begin_s, sights = span.begin_s, span.sights(sampler)
    tsc_khz = guest.layout.tsc_khz
    first_s = sights[0].at_s if sights else begin_s
    samples = guest.samples_between(first_s, span.last_s)
    return {
        "host": {
            "at_s": [round(sight.at_s - begin_s, 3) for sight in sights],
            "source_allocated_mib": [_mib(sight.source_allocated_bytes) for sight in sights],
            "source_resident_mib": [_mib(sight.source_resident_bytes) for sight in sights],
            "destination_allocated_mib": [
                _mib(sight.destination_allocated_bytes) for sight in sights
            ],
            "destination_resident_mib": [
                _mib(sight.destination_resident_bytes) for sight in sights
            ],
            "swap_in_mib": [_mib(s.swap_in_bytes - sights[0].swap_in_bytes) for s in sights],
            "swap_out_mib": [_mib(s.swap_out_bytes - sights[0].swap_out_bytes) for s in sights],
            "wire_mib": [_mib(s.wire_bytes - sights[0].wire_bytes) for s in sights],
        },
        "guest": {
            "at_s": [round(sample.host_time_s - begin_s, 3) for sample in samples],
            "hot_p99_us": [percentile_us([sample], 0.99, tsc_khz) for sample in samples],
        },
    }


def longest_silence_s(times_s: Sequence[float], begin_s: float, end_s: float) -> float:
    """For how long beyond its usual pause the guest said nothing, at most, in this time.

    Measured from outside, so it is the same for whoever carries the guest: the downtime, or a
    longer wait for memory.
    """
    pauses = [
        later - earlier
        for earlier, later in itertools.pairwise(times_s)
        if begin_s <= later <= end_s
    ]
    return max(0.0, max(pauses, default=0.0) - REPORT_S)


def _times(guest: FreestandingGuest) -> list[float]:
    return [sample.host_time_s for sample in guest.samples]


def _bulk_rate(sights: Sequence[Sight]) -> float | None:
    """How fast the destination's memory filled, without the start and the tail."""
    amounts = [sight.destination_allocated_bytes / MIB for sight in sights]
    return rate_between([sight.at_s for sight in sights], amounts, 0.1, 0.9)


def _start_s(during: Sequence[Sight]) -> float | None:
    """How long it took until memory was on the wire."""
    for sight in during:
        if sight.wire_bytes - during[0].wire_bytes > START_BYTES:
            return sight.at_s - during[0].at_s
    return None


def _wire_mib(sights: Sequence[Sight]) -> float | None:
    return (sights[-1].wire_bytes - sights[0].wire_bytes) / MIB if sights else None


def _mib(value: int | None) -> float | None:
    return None if value is None else round(value / MIB, 2)
