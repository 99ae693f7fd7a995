"""Decisions after a round: monotone, bounded, and they come to an end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.policy.rounds import (
    HANDOVER_MS,
    SAMPLE_PAGES,
    GiveUp,
    GoOn,
    RoundHistory,
    RoundRecord,
    SwitchOver,
    decide,
    expected_downtime_ms,
)

MS = 1_000_000
records = st.builds(
    RoundRecord,
    sent_pages=st.integers(0, 10**7),
    duration_ns=st.integers(0, 10**12),
    remaining_pages=st.integers(0, 10**7),
)
histories = st.lists(records, min_size=1, max_size=8).map(lambda r: RoundHistory(tuple(r)))
limits_ms = st.integers(1, 10**6)


@given(histories, limits_ms, st.integers(1, 20))
@settings(deadline=None)
def test_switches_over_only_within_the_limit(
    history: RoundHistory, limit_ms: int, max_rounds: int
) -> None:
    decision = decide(history, limit_ms, max_rounds)
    if isinstance(decision, SwitchOver):
        assert HANDOVER_MS <= decision.expected_downtime_ms <= max(limit_ms, HANDOVER_MS)
    else:
        expected_ms = expected_downtime_ms(history)
        assert expected_ms is None or expected_ms > limit_ms


@given(histories, limits_ms)
@settings(deadline=None)
def test_comes_to_an_end(history: RoundHistory, limit_ms: int) -> None:
    decision = decide(history, limit_ms, len(history.rounds))
    assert not isinstance(decision, GoOn)


@given(histories, limits_ms, st.integers(0, 10**6))
@settings(deadline=None)
def test_a_higher_limit_never_holds_up_the_switchover(
    history: RoundHistory, limit_ms: int, more_ms: int
) -> None:
    if isinstance(decide(history, limit_ms, 9), SwitchOver):
        assert isinstance(decide(history, limit_ms + more_ms, 9), SwitchOver)


@given(histories, st.integers(0, 10**6))
@settings(deadline=None)
def test_more_left_means_no_shorter_downtime(history: RoundHistory, more_pages: int) -> None:
    last = history.rounds[-1]
    worse = RoundHistory(
        (
            *history.rounds[:-1],
            RoundRecord(last.sent_pages, last.duration_ns, last.remaining_pages + more_pages),
        )
    )
    before, after = expected_downtime_ms(history), expected_downtime_ms(worse)
    assert after is None or (before is not None and before <= after)


def test_guest_that_writes_nothing_switches_over_at_once() -> None:
    history = RoundHistory().with_round(RoundRecord(0, 1 * MS, 0))
    assert decide(history, 1, 30) == SwitchOver(HANDOVER_MS)


def test_nothing_is_decided_before_the_first_round() -> None:
    assert isinstance(decide(RoundHistory(), 10**6, 30), GoOn)


def test_expected_downtime_is_what_is_left_at_the_measured_rate() -> None:
    history = RoundHistory((RoundRecord(100_000, 1000 * MS, 10_000),))  # 100 pages a ms
    assert expected_downtime_ms(history) == HANDOVER_MS + 100 + 1
    assert isinstance(decide(history, HANDOVER_MS + 101, 30), SwitchOver)
    assert decide(history, HANDOVER_MS + 100, 30) == GoOn(HANDOVER_MS + 101)


def test_a_small_round_does_not_spoil_the_rate() -> None:
    fast = RoundRecord(100_000, 1000 * MS, 500)
    slow_because_small = RoundRecord(SAMPLE_PAGES - 1, 1000 * MS, 500)
    history = RoundHistory((fast, slow_because_small))
    assert history.pages_per_s == pytest.approx(100_000)
    assert RoundHistory((slow_because_small,)).pages_per_s == pytest.approx(SAMPLE_PAGES - 1)


def test_unknown_rate_goes_on_and_then_gives_up() -> None:
    history = RoundHistory((RoundRecord(0, 5 * MS, 100),))
    assert decide(history, 300, 30) == GoOn(None)
    assert isinstance(decide(history, 300, 1), GiveUp)


def test_giving_up_says_why_and_what_to_do() -> None:
    history = RoundHistory((RoundRecord(25_600, 1000 * MS, 25_600),))
    decision = decide(history, 300, 1)
    assert isinstance(decision, GiveUp)
    assert "100.0 MiB" in decision.reason
    assert "100 MiB/s" in decision.reason
    assert "1026 ms" in decision.reason
    assert "downtime-limit to 1282" in decision.advice
