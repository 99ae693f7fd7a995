"""How long the guest would be stopped if it were handed over now.

It is stopped for one more scan of the write marks, for the sending of what that finds and its
acknowledgement, for the pages among them that have to be paged in, and for QEMU's device state with
the commit. The first is measured in every round; the last can only be known from earlier
switchovers on this host, or else assumed. More is written between the decision and the stop: that
counts too.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

from pageferry.policy.rounds import NS_PER_S, RoundHistory

HANDOVER_NS = 25_000_000
"""Device state and commit, before any was measured: 6.5 to 26 ms were, from STOP to RESUME."""

HANDOVER_MS = HANDOVER_NS // 1_000_000

STOP_NS = 30_000_000
"""From the decision until the guest stands still, before it was measured: both QEMUs are prepared
meanwhile, and QEMU takes 2 to 15 ms to stop it."""

SWAPPED_PAGES_PER_S = 20_000.0
"""Page-in before any was measured: 80 MB/s, a slow SSD with scattered pages."""

REMEMBERED = 7
"""Earlier switchovers whose median counts: one that met a stalled disk must not decide for all."""

LEAST_REMEMBERED = 3
"""As long as there are fewer, what is assumed stands for the others. One slow switchover among two
would else keep every busy guest of the host from the next one, which alone could put it right."""


@dataclass(frozen=True, slots=True)
class StopCosts:
    """What was measured of the parts that do not depend on what is left to send. In ns."""

    scan_ns: int = 0
    round_trip_ns: int = 0
    handover_ns: int = HANDOVER_NS
    stop_ns: int = STOP_NS
    swapped_pages_per_s: float = SWAPPED_PAGES_PER_S

    @property
    def fixed_ns(self) -> int:
        """Downtime that is there without a page to send."""
        return self.scan_ns + self.round_trip_ns + self.handover_ns

    def remembering(self, handovers_ns: list[int], stops_ns: list[int]) -> StopCosts:
        """With the medians of earlier switchovers, newest last, of which what is assumed makes up
        `LEAST_REMEMBERED`.
        """
        return replace(
            self,
            handover_ns=_median(handovers_ns, self.handover_ns),
            stop_ns=_median(stops_ns, self.stop_ns),
        )


def least_downtime_ms(costs: StopCosts) -> int:
    """Less cannot be had, whatever the limit. Rounded up."""
    return costs.fixed_ns // 1_000_000 + 1


def expected_downtime_ms(
    history: RoundHistory, costs: StopCosts, pages_written_per_s: float = 0, swapped_pages: int = 0
) -> int | None:
    """Downtime to expect if the switchover were decided now, rounded up; None: no rate is known.

    *pages_written_per_s* is what the guest writes; it adds to what is left until the guest stands
    still, though never beyond the largest rest there ever was: a guest writes the same pages again.
    *swapped_pages* of what is left have to be paged in first.
    """
    more_pages = pages_written_per_s * costs.stop_ns / NS_PER_S
    largest = max((each.remaining_pages for each in history.rounds), default=0)
    pages = max(history.remaining_pages, min(history.remaining_pages + more_pages, largest))
    least_ms = least_downtime_ms(costs)
    if not pages:
        return least_ms
    pages_per_s = history.pages_per_s
    if not pages_per_s:
        return None
    page_in_ms = swapped_pages * 1000 / costs.swapped_pages_per_s
    return least_ms + int(pages * 1000 / pages_per_s + page_in_ms) + 1


def _median(values_ns: list[int], assumed_ns: int) -> int:
    assumed = [assumed_ns] * (LEAST_REMEMBERED - len(values_ns))
    return statistics.median_low(values_ns[-REMEMBERED:] + assumed)
