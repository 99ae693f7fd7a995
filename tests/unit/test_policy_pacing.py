"""Pacing of the cold pass: bounded, monotone in the harm done to others, and it recovers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.policy.pacing import (
    LOW_SLOWDOWN,
    MIB,
    NS_PER_S,
    TARGET_SLOWDOWN,
    Cycle,
    HostReading,
    Pace,
    allowed_bytes_per_s,
    before_the_migration,
    next_pace,
    others_bytes_per_s,
    wants_pause,
)

TENTH_NS = NS_PER_S // 10
START = HostReading(0, 0, 0, 0, 0, 0)
FAST = 800 * MIB

paces = st.builds(
    Pace,
    bytes_per_s=st.none() | st.floats(MIB, 1e11),
    fastest_bytes_per_s=st.floats(0, 1e11),
    usual_pressure=st.floats(0, 1),
    usual_guest_pressure=st.floats(0, 1),
    pauses_bytes_per_s=st.tuples(st.floats(0, 1e10), st.floats(0, 1e10)),
)
shares = st.floats(0, 1)
rates = st.integers(0, 10**10)


def span(
    *, others: float = 0, own: float = 0, memory: float = 0, guest: float = 0
) -> tuple[HostReading, HostReading]:
    """A tenth of a second: read by others and by us in bytes/s, and the shares that were waited."""
    own_bytes = int(own / 10)
    after = HostReading(
        time_ns=TENTH_NS,
        read_bytes=int(others / 10) + own_bytes,
        own_read_bytes=own_bytes,
        memory_us=int(memory * TENTH_NS / 1000),
        guest_us=int(guest * TENTH_NS / 1000),
        paged_in_bytes=own_bytes,
    )
    return START, after


def cycle(work: float, rest: float, own: float = FAST) -> Cycle:
    """Others read *work* beside us and *rest* without us, in bytes/s."""
    return Cycle(span(others=work, own=own), span(others=rest))


cycles = st.builds(
    lambda work, rest, own, memory, guest: Cycle(
        span(others=work, own=own, guest=guest), span(others=rest, memory=memory)
    ),
    rates,
    rates,
    rates,
    shares,
    shares,
)


def rate_of(pace: Pace) -> float:
    return float("inf") if pace.bytes_per_s is None else pace.bytes_per_s


@given(paces, cycles)
@settings(deadline=None)
def test_it_is_bounded_and_never_stands_still(pace: Pace, one: Cycle) -> None:
    found = next_pace(pace, one)
    assert rate_of(found) >= found.floor_bytes_per_s >= MIB
    if found.bytes_per_s is not None:
        most = max(found.fastest_bytes_per_s, found.floor_bytes_per_s, pace.bytes_per_s or 0)
        assert found.bytes_per_s <= most


@given(paces, rates, st.tuples(rates, rates), rates)
@settings(deadline=None)
def test_more_harm_is_never_faster(pace: Pace, rest: int, work: tuple[int, int], own: int) -> None:
    much, little = sorted(work)
    harmed = next_pace(pace, cycle(much, rest, own))
    spared = next_pace(pace, cycle(little, rest, own))
    assert rate_of(harmed) <= rate_of(spared)


@given(paces, st.tuples(shares, shares), rates)
@settings(deadline=None)
def test_more_pressure_is_never_faster(pace: Pace, waits: tuple[float, float], own: int) -> None:
    less, more = sorted(waits)
    work = span(own=own)
    calm = next_pace(pace, Cycle(work, span(memory=less)))
    tense = next_pace(pace, Cycle(work, span(memory=more)))
    assert rate_of(tense) <= rate_of(calm)


@given(paces)
@settings(deadline=None)
def test_it_recovers_in_bounded_time(pace: Pace) -> None:
    for _cycle in range(40):
        pace = next_pace(pace, Cycle(span(own=FAST), span()))
    assert pace.bytes_per_s is None


@given(rates, shares, shares)
@settings(deadline=None)
def test_alone_on_a_host_we_are_not_paced(own: int, memory: float, guest: float) -> None:
    """However much we read: nobody else does. What waited before the migration waits still."""
    pace = before_the_migration(*span(memory=memory, guest=guest))
    work = span(own=own, guest=guest)
    assert not wants_pause(pace, *work)
    assert next_pace(pace, Cycle(work)).bytes_per_s is None
    assert next_pace(pace, Cycle(work, span(memory=memory))).bytes_per_s is None


@given(st.integers(0, 10**10), st.integers(0, 10**10))
@settings(deadline=None)
def test_what_others_read_is_what_we_did_not(others: int, own: int) -> None:
    assert others_bytes_per_s(*span(others=others, own=own)) == pytest.approx(others, abs=10)


def test_somebody_who_reads_is_worth_a_pause_as_long_as_he_did_lately() -> None:
    reads = span(others=4 * MIB, own=FAST)
    assert wants_pause(Pace(), *reads)
    starved = span(own=FAST)
    assert not wants_pause(Pace(), *starved)
    assert wants_pause(before_the_migration(*span(others=4 * MIB)), *starved)


def test_one_who_reads_by_chance_does_not_slow_us() -> None:
    """Just before the migration, or in a single pause: a program that starts."""
    for pace in (before_the_migration(*span(others=50 * MIB)), Pace()):
        quiet = next_pace(pace, cycle(0, 0))
        assert quiet.bytes_per_s is None
        once = next_pace(quiet, cycle(0, 20 * MIB))
        assert once.bytes_per_s is None
        assert next_pace(once, cycle(0, 0)).bytes_per_s is None


def test_when_nobody_reads_any_more_the_limit_goes_at_once() -> None:
    pace = before_the_migration(*span(others=40 * MIB))
    for _cycle in range(3):
        pace = next_pace(pace, cycle(4 * MIB, 40 * MIB))
    assert pace.bytes_per_s is not None
    for _cycle in range(2):
        pace = next_pace(pace, cycle(0, 0))
    assert pace.bytes_per_s is None


def test_one_that_is_as_fast_with_us_is_not_spared() -> None:
    """He may wait for his swap all the time: it is not our doing."""
    pace = before_the_migration(*span(others=40 * MIB, memory=0.95))
    one = Cycle(span(others=39 * MIB, own=FAST), span(others=40 * MIB, memory=0.95))
    assert next_pace(pace, one).bytes_per_s is None


def test_the_rate_falls_by_as_much_as_others_suffer() -> None:
    """A model of a device that both share: with half our rate the neighbour loses half as much."""
    rest = 40 * MIB
    pace = before_the_migration(*span(others=rest))
    own, lost = float(FAST), 0.83
    rates = []
    for _cycle in range(6):
        slowdown = lost * own / FAST
        pace = next_pace(pace, cycle(rest * (1 - slowdown), rest, own))
        own = min(FAST, rate_of(pace))
        rates.append(own)
    assert lost * own / FAST <= TARGET_SLOWDOWN * 1.5
    assert own >= FAST / 10
    assert rates[1] < FAST / 2, "two cycles, not many"


def test_under_lasting_harm_a_tenth_of_the_speed_is_left() -> None:
    pace = before_the_migration(*span(others=40 * MIB))
    for _cycle in range(10):
        own = min(FAST, rate_of(pace))
        pace = next_pace(pace, cycle(0.2 * 40 * MIB, 40 * MIB, own))
    assert pace.bytes_per_s == pytest.approx(FAST / 10, rel=1e-6)
    between = (LOW_SLOWDOWN + TARGET_SLOWDOWN) / 2
    held = next_pace(pace, cycle((1 - between) * 40 * MIB, 40 * MIB, pace.bytes_per_s or 0))
    assert held.bytes_per_s == pace.bytes_per_s


def test_the_guest_that_waits_more_than_before_slows_us_without_a_pause() -> None:
    pace = before_the_migration(*span(guest=0.1))
    assert next_pace(pace, Cycle(span(own=FAST, guest=0.25))).bytes_per_s is None
    assert next_pace(pace, Cycle(span(own=FAST, guest=0.5))).bytes_per_s == pytest.approx(FAST / 2)


def test_without_counters_there_is_no_pace() -> None:
    none = replace(START, memory_us=None, guest_us=None)
    after = replace(none, time_ns=TENTH_NS, paged_in_bytes=MIB)
    assert next_pace(Pace(), Cycle((none, after), (none, after))).bytes_per_s is None
    assert next_pace(Pace(), Cycle((START, START), (START, START))) == Pace()


@given(paces, st.just(0) | st.integers(65536, 10**12))
def test_the_operators_limit_holds_whatever_the_pace(pace: Pace, limit: int) -> None:
    assert allowed_bytes_per_s(pace, limit, paced=False) == limit
    allowed = allowed_bytes_per_s(pace, limit, paced=True)
    if limit or pace.bytes_per_s:
        assert allowed > 0
    if limit:
        assert allowed <= limit
