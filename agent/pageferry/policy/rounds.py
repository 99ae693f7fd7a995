"""After each round: go on, switch over, or give up.

What is left is sent while the guest is stopped, so the downtime to expect is the time for that, at
the rate that was measured, and a fixed part for QEMU's device state. The rounds end in any case:
at the latest after ``max_rounds`` the answer is no longer GoOn.
"""

from __future__ import annotations

from dataclasses import dataclass

from pageferry.model.blocks import PAGE_BYTES

HANDOVER_MS = 25
"""Downtime that is there without a page to send: 6.5 to 26 ms were measured from STOP to RESUME."""

SAMPLE_PAGES = 1024
"""A round of fewer pages (4 MiB) measures latency rather than the rate."""

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round that was acknowledged: what it sent, how long it took, what is left after it.

    ``sent_pages`` counts pages with payload, ``duration_ns`` from the scan to the acknowledgement.
    ``remaining_pages`` are the pages that are owed to the destination now: written since, or
    unproven.
    """

    sent_pages: int
    duration_ns: int
    remaining_pages: int


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


@dataclass(frozen=True, slots=True)
class GoOn:
    """Send another round. None: the downtime cannot be told yet."""

    expected_downtime_ms: int | None


@dataclass(frozen=True, slots=True)
class SwitchOver:
    """Stop the guest and hand it over."""

    expected_downtime_ms: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It does not converge. ``reason`` says why in numbers, ``advice`` what to do."""

    reason: str
    advice: str


Decision = GoOn | SwitchOver | GiveUp


def expected_downtime_ms(history: RoundHistory) -> int | None:
    """Downtime to expect if the guest were stopped now, rounded up; None where no rate is known."""
    remaining_pages = history.remaining_pages
    if remaining_pages == 0:
        return HANDOVER_MS
    pages_per_s = history.pages_per_s
    if pages_per_s is None:
        return None
    return HANDOVER_MS + int(remaining_pages * 1000 / pages_per_s) + 1


def decide(history: RoundHistory, downtime_limit_ms: int, max_rounds: int) -> Decision:
    """What to do after the last round of *history*.

    SwitchOver as soon as the expected downtime is within *downtime_limit_ms*, and also for a limit
    below HANDOVER_MS once nothing is left to send: less cannot be had.
    """
    expected_ms = expected_downtime_ms(history)
    within_ms = max(downtime_limit_ms, HANDOVER_MS)
    if history.rounds and expected_ms is not None and expected_ms <= within_ms:
        return SwitchOver(expected_ms)
    if len(history.rounds) >= max_rounds:
        return _give_up(history, expected_ms, downtime_limit_ms)
    return GoOn(expected_ms)


def _give_up(history: RoundHistory, expected_ms: int | None, downtime_limit_ms: int) -> GiveUp:
    remaining_mib = history.remaining_pages * PAGE_BYTES / 2**20
    rate_mib = (history.pages_per_s or 0) * PAGE_BYTES / 2**20
    downtime = "a downtime that cannot be told" if expected_ms is None else f"{expected_ms} ms"
    wanted_ms = downtime_limit_ms if expected_ms is None else expected_ms * 5 // 4
    return GiveUp(
        reason=(
            f"the guest writes faster than it can be sent: after {len(history.rounds)} rounds"
            f" {remaining_mib:.1f} MiB are left, which at {rate_mib:.0f} MiB/s means {downtime}"
            f" (downtime-limit {downtime_limit_ms} ms)"
        ),
        advice=(
            f"set downtime-limit to {wanted_ms} or more, raise max-rounds, or try again when the"
            " guest is less busy"
        ),
    )
