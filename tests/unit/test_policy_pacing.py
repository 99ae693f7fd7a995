"""Pacing of the cold pass: bounded, monotone in pressure, and it recovers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.policy.pacing import (
    HIGH,
    LOW,
    MIB,
    NS_PER_S,
    Pace,
    PressureReading,
    allowed_bytes_per_s,
    before_the_migration,
    next_pace,
    pressure_between,
)

TENTH_NS = NS_PER_S // 10
START = PressureReading(0, 0, 0, 0, 0, 0)

paces = st.builds(
    Pace,
    bytes_per_s=st.none() | st.floats(MIB, 1e11),
    fastest_bytes_per_s=st.floats(0, 1e11),
)
shares = st.floats(0, 1)


def later(
    before: PressureReading = START,
    *,
    memory: float = 0.0,
    io: float = 0.0,
    guest: float = 0.0,
    own: float = 0.0,
    paged_in: int = 0,
) -> PressureReading:
    """A tenth of a second later, somebody having waited for these shares of it."""

    def us(was: int | None, share: float) -> int:
        return (was or 0) + int(share * TENTH_NS / 1000)

    return PressureReading(
        before.time_ns + TENTH_NS,
        us(before.memory_us, memory),
        us(before.io_us, io),
        us(before.guest_us, guest),
        before.own_ns + int(own * TENTH_NS),
        before.paged_in_bytes + paged_in,
    )


@given(paces, st.tuples(shares, shares, shares), shares, st.integers(0, 10**9))
@settings(deadline=None)
def test_it_is_bounded_and_never_stands_still(
    pace: Pace, waits: tuple[float, float, float], own: float, paged_in: int
) -> None:
    memory, io, guest = waits
    after = later(memory=memory, io=io, guest=guest, own=own, paged_in=paged_in)
    found = next_pace(pace, START, after)
    assert 0 <= found.pressure <= 1
    if found.bytes_per_s is not None:
        assert found.bytes_per_s >= min(found.floor_bytes_per_s, pace.bytes_per_s or 1e12)
        assert found.bytes_per_s >= MIB
        assert found.bytes_per_s <= max(
            found.fastest_bytes_per_s, found.floor_bytes_per_s, pace.bytes_per_s or 0
        )


@given(paces, shares, shares, shares, st.integers(0, 10**9))
@settings(deadline=None)
def test_more_pressure_is_never_faster(
    pace: Pace, less: float, more: float, own: float, paged_in: int
) -> None:
    less, more = sorted((less, more))
    calm = next_pace(pace, START, later(memory=less, own=own, paged_in=paged_in))
    tense = next_pace(pace, START, later(memory=more, own=own, paged_in=paged_in))
    assert (tense.bytes_per_s or 1e13) <= (calm.bytes_per_s or 1e13)


@given(paces)
@settings(deadline=None)
def test_it_recovers_in_bounded_time(pace: Pace) -> None:
    before = START
    for _reading in range(60):
        after = later(before)
        pace, before = next_pace(pace, before, after), after
    assert pace.bytes_per_s is None


@given(shares, st.floats(0, 0.9), st.integers(1, 10**9))
@settings(deadline=None)
def test_our_own_waits_alone_are_no_pressure(share: float, own: float, paged_in: int) -> None:
    """However long we wait: nobody else does."""
    some = share * own
    after = later(memory=some, io=some, own=own, paged_in=paged_in)
    assert pressure_between(START, after) == pytest.approx(0, abs=1e-3)
    assert next_pace(Pace(), START, after).bytes_per_s is None


@given(st.floats(0.01, 1), st.floats(0, 0.9))
@settings(deadline=None)
def test_a_neighbour_is_seen_beside_our_own_waits(others: float, own: float) -> None:
    some = others + own - others * own
    assert pressure_between(START, later(memory=some, own=own)) == pytest.approx(others, abs=1e-3)
    assert pressure_between(START, later(io=some, own=own)) == pytest.approx(others, abs=1e-3)


@given(st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None)
def test_waits_for_io_count_only_beyond_what_is_usual(usual: float, now: float) -> None:
    pace = before_the_migration(START, later(io=usual))
    found = pressure_between(START, later(io=now), pace.usual_io)
    assert found == pytest.approx(max(0.0, now - usual), abs=1e-3)


def test_one_long_wait_is_no_pressure() -> None:
    after = later(memory=0.4, paged_in=20 * MIB)
    assert next_pace(Pace(), START, after).bytes_per_s is None


def test_the_guests_own_waits_count_in_full() -> None:
    assert pressure_between(START, later(guest=0.5, own=0.9)) == pytest.approx(0.5, abs=1e-3)


def test_without_psi_there_is_no_pace() -> None:
    none = replace(START, memory_us=None, io_us=None, guest_us=None)
    after = replace(none, time_ns=TENTH_NS, paged_in_bytes=MIB)
    assert next_pace(Pace(), none, after).bytes_per_s is None
    assert next_pace(Pace(), START, START) == Pace()


def test_under_lasting_pressure_a_tenth_of_the_speed_is_left() -> None:
    pace, before = Pace(), START
    for _reading in range(20):
        after = later(before, memory=HIGH + 0.1, paged_in=20 * MIB if before is START else MIB)
        pace, before = next_pace(pace, before, after), after
    assert pace.bytes_per_s == pytest.approx(20 * MIB)
    held = next_pace(pace, before, later(before, memory=(LOW + HIGH) / 2))
    assert held.bytes_per_s == pace.bytes_per_s


@given(paces, st.just(0) | st.integers(65536, 10**12))
def test_the_operators_limit_holds_whatever_the_pace(pace: Pace, limit: int) -> None:
    assert allowed_bytes_per_s(pace, limit, paced=False) == limit
    allowed = allowed_bytes_per_s(pace, limit, paced=True)
    if limit or pace.bytes_per_s:
        assert allowed > 0
    if limit:
        assert allowed <= limit
