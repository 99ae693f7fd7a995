"""What the rounds have shown: how fast pages go out, and whether the rest still shrinks."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLE_PAGES = 1024
"""A round of fewer pages (4 MiB) measures latency rather than the rate."""

NS_PER_S = 1_000_000_000

LEAST_ROUND_NS = 100_000_000
"""Rounds that follow each other faster only cost the guest a minor fault for each hot page, again
and again, for a set that has not had the time to change."""

FIRST_PASS_ROUNDS = 2
"""Rounds 1 and, where there is something left for it, 2 send everything once: the long ones, which
are polite."""

STALL_ROUNDS = 2
"""One round that did not shrink may be a burst of the guest's; two in a row are its way of life."""

SHRINK_SHARE = 0.8
"""A rest of more than this share of the best so far has not shrunk. At 0.8 a round it would take
ten rounds to a tenth; a guest that slow to converge is better helped."""


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round that was acknowledged: what it sent, how long it took, what is left after it.

    ``sent_pages`` counts pages with payload, ``duration_ns`` the time in which they were sent.
    ``remaining_pages`` are the pages that are owed to the destination now: written since the scan
    before, ``since_scan_ns`` ago, or unproven. ``throttle_percent`` is what was taken from the
    vCPUs meanwhile.
    """

    sent_pages: int
    duration_ns: int
    remaining_pages: int
    throttle_percent: int = 0
    since_scan_ns: int = 0


@dataclass(frozen=True, slots=True)
class RoundHistory:
    """The rounds so far, oldest first. Leave the cold pass out: its rate is the swap device's."""

    rounds: tuple[RoundRecord, ...] = ()

    def with_round(self, record: RoundRecord) -> RoundHistory:
        """The history with one more round."""
        return RoundHistory((*self.rounds, record))

    @property
    def remaining_pages(self) -> int:
        """Pages owed after the last round; 0 before the first."""
        return self.rounds[-1].remaining_pages if self.rounds else 0

    @property
    def throttle_percent(self) -> int:
        """What was taken from the vCPUs in the last round."""
        return self.rounds[-1].throttle_percent if self.rounds else 0

    @property
    def pages_per_s(self) -> float | None:
        """The rate of the last round that sent enough to tell, else of all together; None if
        none.
        """
        for record in reversed(self.rounds):
            if record.sent_pages >= SAMPLE_PAGES and record.duration_ns > 0:
                return record.sent_pages * NS_PER_S / record.duration_ns
        sent_pages = sum(record.sent_pages for record in self.rounds)
        duration_ns = sum(record.duration_ns for record in self.rounds)
        return sent_pages * NS_PER_S / duration_ns if sent_pages and duration_ns > 0 else None

    @property
    def has_stalled(self) -> bool:
        """Whether the rest no longer shrinks, although the throttle has had the time to act.

        The best of the last STALL_ROUNDS, all under the present throttle, is no better than
        SHRINK_SHARE of the best before them.
        """
        recent, before = self.rounds[-STALL_ROUNDS:], self.rounds[:-STALL_ROUNDS]
        if not before or any(each.throttle_percent != self.throttle_percent for each in recent):
            return False
        best = min(each.remaining_pages for each in before)
        return min(each.remaining_pages for each in recent) > SHRINK_SHARE * best
