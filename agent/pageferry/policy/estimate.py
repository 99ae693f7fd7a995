"""What a migration would cost, by the guest's residency and a short sample of its writes. Pure.

The rounds are played through as `policy.convergence` would decide them. How many pages a guest
writes in a given time is read off the sample: a guest writes the same pages again and again, so
that twice the time does not mean twice the pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.residency import ResidencyBytes
from pageferry.policy.downtime import HANDOVER_MS

ASSUMED_BANDWIDTH = 1024**3
"""Bytes per second over the network unless given: two connections over loopback, or 10 Gbit/s."""

ASSUMED_SWAP_BANDWIDTH = 128 * 1024**2
"""Bytes per second through the page-in window unless given: 632 MiB went in and out again in 5 s on
an ordinary disk."""

MIN_ROUND_S = 0.1
"""As long as a round takes at least (see migration/carry.py)."""


@dataclass(frozen=True, slots=True)
class WriteSample:
    """How many different pages were written, cumulatively, at equal steps of time.

    ``written_pages[k]``: in the first (k + 1) · ``step_s`` seconds.
    """

    step_s: float
    written_pages: Sequence[int]

    @property
    def length_s(self) -> float:
        """How long the sample is."""
        return self.step_s * len(self.written_pages)

    def pages_in(self, seconds: float, limit_pages: int) -> int:
        """Pages that are written in so many *seconds*, at most *limit_pages*.

        Beyond the sample it goes on as in the sample's second half.
        """
        curve = [0, *self.written_pages]
        steps = seconds / self.step_s
        whole = int(steps)
        if whole < len(curve) - 1:
            pages = curve[whole] + (curve[whole + 1] - curve[whole]) * (steps - whole)
        else:
            half = len(curve) // 2
            growth = (curve[-1] - curve[half]) / max(1, len(curve) - 1 - half)
            pages = curve[-1] + growth * (steps - (len(curve) - 1))
        return min(limit_pages, round(pages))

    @property
    def dirty_bytes_per_s(self) -> float:
        """Bytes of different pages in a second."""
        within_s = min(1.0, self.length_s)
        return self.pages_in(within_s, 1 << 62) * PAGE_BYTES / within_s if within_s else 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What to expect. ``converges`` False: it would give up after ``rounds``."""

    transfer_bytes: int
    page_in_bytes: int
    duration_ms: int
    rounds: int
    dirty_bytes_per_s: float
    downtime_ms: int
    converges: bool


def estimate(
    residency: ResidencyBytes,
    sample: WriteSample,
    *,
    bandwidth: float = ASSUMED_BANDWIDTH,
    swap_bandwidth: float = ASSUMED_SWAP_BANDWIDTH,
    downtime_limit_ms: int,
    max_rounds: int,
) -> Estimate:
    """The costs, at *bandwidth* and *swap_bandwidth* in bytes per second.

    Pages that hold only zeros are counted as if they were sent, since nobody has read them: the
    bytes are an upper bound there.
    """
    data_bytes = residency.resident_bytes + residency.swapped_bytes
    data_pages = data_bytes // PAGE_BYTES
    # What is paged in is sent meanwhile; the slower of the two decides.
    cold_s = residency.swapped_bytes / min(bandwidth, swap_bandwidth)
    round_s = cold_s + residency.resident_bytes / bandwidth
    duration_s, transfer_bytes, rounds = round_s, data_bytes, 1
    while True:
        written_bytes = sample.pages_in(round_s, data_pages) * PAGE_BYTES
        downtime_ms = HANDOVER_MS + round(written_bytes * 1000 / bandwidth)
        converges = downtime_ms <= max(downtime_limit_ms, HANDOVER_MS)
        if converges or rounds >= max_rounds:
            break
        rounds += 1
        round_s = max(MIN_ROUND_S, written_bytes / bandwidth)
        duration_s += round_s
        transfer_bytes += written_bytes
    return Estimate(
        transfer_bytes=transfer_bytes + written_bytes,
        page_in_bytes=residency.swapped_bytes,
        duration_ms=round(duration_s * 1000) + downtime_ms,
        rounds=rounds + 1,
        dirty_bytes_per_s=sample.dirty_bytes_per_s,
        downtime_ms=downtime_ms,
        converges=converges,
    )
