"""The downtime to expect: made of what was measured, and never less than what is fixed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.policy.downtime import (
    HANDOVER_NS,
    LEAST_REMEMBERED,
    STOP_NS,
    StopCosts,
    expected_downtime_ms,
    least_downtime_ms,
)
from pageferry.policy.rounds import RoundHistory, RoundRecord

MS = 1_000_000
times_ns = st.integers(0, 10**11)
costs = st.builds(
    StopCosts,
    scan_ns=times_ns,
    round_trip_ns=times_ns,
    handover_ns=times_ns,
    stop_ns=times_ns,
    swapped_pages_per_s=st.floats(1, 1e7),
)
records = st.builds(
    RoundRecord,
    sent_pages=st.integers(0, 10**7),
    duration_ns=st.integers(0, 10**12),
    remaining_pages=st.integers(0, 10**7),
)
histories = st.lists(records, min_size=1, max_size=8).map(lambda r: RoundHistory(tuple(r)))
writes = st.floats(0, 1e9)


@given(histories, costs, writes, st.integers(0, 10**6))
@settings(deadline=None)
def test_never_below_what_is_there_with_nothing_to_send(
    history: RoundHistory, found: StopCosts, written: float, swapped: int
) -> None:
    expected = expected_downtime_ms(history, found, written, swapped)
    assert expected is None or expected >= least_downtime_ms(found)
    assert least_downtime_ms(found) * MS > found.scan_ns + found.round_trip_ns + found.handover_ns


@given(histories, costs, writes, st.integers(0, 10**6), st.integers(0, 10**6))
@settings(deadline=None)
def test_more_of_anything_never_means_less(
    history: RoundHistory, found: StopCosts, written: float, swapped: int, more: int
) -> None:
    before = expected_downtime_ms(history, found, written, swapped)
    last = history.rounds[-1]
    worse = RoundHistory(
        (*history.rounds[:-1], replace(last, remaining_pages=last.remaining_pages + more))
    )
    for after in (
        expected_downtime_ms(worse, found, written, swapped),
        expected_downtime_ms(history, found, written + more, swapped),
        expected_downtime_ms(history, found, written, swapped + more),
        expected_downtime_ms(
            history, replace(found, scan_ns=found.scan_ns + more), written, swapped
        ),
    ):
        assert after is None or (before is not None and before <= after)


def test_it_is_what_is_left_at_the_measured_rate() -> None:
    history = RoundHistory((RoundRecord(100_000, 1000 * MS, 10_000),))  # 100 pages a ms
    found = StopCosts(scan_ns=2 * MS, round_trip_ns=3 * MS, handover_ns=20 * MS)
    assert expected_downtime_ms(history, found) == 26 + 100 + 1
    # 20 pages a ms are paged in.
    assert expected_downtime_ms(history, found, 0, 1000) == 26 + 150 + 1


def test_what_is_written_until_the_stop_counts_but_never_beyond_the_largest_rest() -> None:
    found = StopCosts(handover_ns=20 * MS, stop_ns=100 * MS)
    rounds = (RoundRecord(100_000, 1000 * MS, 3_000), RoundRecord(100_000, 1000 * MS, 2_000))
    assert expected_downtime_ms(RoundHistory(rounds), found, 5_000) == 21 + 25 + 1
    assert expected_downtime_ms(RoundHistory(rounds), found, 10**9) == 21 + 30 + 1


def test_what_earlier_switchovers_cost_is_remembered_by_the_median() -> None:
    assert StopCosts().remembering([], []).handover_ns == HANDOVER_NS
    found = StopCosts().remembering([900, *[40] * 5, 10**12, 60], [7])
    assert (found.handover_ns, found.stop_ns) == (40, STOP_NS)


@pytest.mark.parametrize("slow_at", [0, 1])
def test_one_slow_switchover_of_two_decides_nothing(slow_at: int) -> None:
    handovers = [50 * MS]
    handovers.insert(slow_at, 3_500 * MS)
    assert StopCosts().remembering(handovers, []).handover_ns == 50 * MS


@given(st.lists(st.integers(0, 10**12), min_size=1), st.lists(times_ns, min_size=1))
@settings(deadline=None)
def test_what_is_remembered_lies_within_what_was(handovers: list[int], stops: list[int]) -> None:
    found = StopCosts().remembering(handovers, stops)
    for value, seen, assumed in (
        (found.handover_ns, handovers, HANDOVER_NS),
        (found.stop_ns, stops, STOP_NS),
    ):
        among = seen if len(seen) >= LEAST_REMEMBERED else [*seen, assumed]
        assert min(among) <= value <= max(among)
