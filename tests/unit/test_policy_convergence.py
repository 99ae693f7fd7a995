"""Decisions after a round: bounded, monotone, and they come to an end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.model.parameters import NO_CONVERGENCE_CHOICES, MigrationParameters
from pageferry.policy.convergence import SHORTENING_ROUNDS, GiveUp, GoOn, SwitchOver, decide
from pageferry.policy.rounds import SAMPLE_PAGES, RoundHistory, RoundRecord

MS = 1_000_000
LEAST_MS = 25

records = st.builds(
    RoundRecord,
    sent_pages=st.integers(0, 10**7),
    duration_ns=st.integers(0, 10**12),
    remaining_pages=st.integers(0, 10**7),
    throttle_percent=st.integers(0, 99),
    since_scan_ns=st.integers(0, 10**12),
)
histories = st.lists(records, min_size=1, max_size=8).map(lambda r: RoundHistory(tuple(r)))
parameters = st.builds(
    MigrationParameters,
    downtime_limit_ms=st.integers(1, 10**6),
    max_rounds=st.integers(1, 20),
    auto_converge=st.booleans(),
    throttle_initial=st.integers(1, 99),
    throttle_increment=st.integers(1, 99),
    max_throttle=st.integers(1, 99),
    on_no_convergence=st.sampled_from(NO_CONVERGENCE_CHOICES),
)
expectations = st.none() | st.integers(LEAST_MS, 10**7)


@given(histories, expectations, parameters)
@settings(deadline=None)
def test_switches_over_within_the_limit_or_as_was_asked(
    history: RoundHistory, expected_ms: int | None, wanted: MigrationParameters
) -> None:
    decision = decide(history, expected_ms, LEAST_MS, wanted)
    within = expected_ms is not None and expected_ms <= max(wanted.downtime_limit_ms, LEAST_MS)
    if within and isinstance(decision, GoOn):
        assert len(history.rounds) < SHORTENING_ROUNDS
        assert decision == GoOn(expected_ms, 0)
    else:
        assert within == (isinstance(decision, SwitchOver) and not decision.forced)
    if isinstance(decision, SwitchOver) and decision.forced:
        assert wanted.on_no_convergence == "switch-over"
    if isinstance(decision, GiveUp):
        assert wanted.on_no_convergence == "give-up"


@given(histories, expectations, parameters)
@settings(deadline=None)
def test_comes_to_an_end(
    history: RoundHistory, expected_ms: int | None, wanted: MigrationParameters
) -> None:
    wanted = replace(wanted, max_rounds=len(history.rounds))
    decision = decide(history, expected_ms, LEAST_MS, wanted)
    assert isinstance(decision, GoOn) <= (wanted.on_no_convergence == "continue")


@given(histories, expectations, parameters)
@settings(deadline=None)
def test_a_throttle_is_allowed_bounded_and_never_falls_by_itself(
    history: RoundHistory, expected_ms: int | None, wanted: MigrationParameters
) -> None:
    decision = decide(history, expected_ms, LEAST_MS, wanted)
    if not isinstance(decision, GoOn):
        return
    if not wanted.auto_converge:
        assert decision.throttle_percent == 0
    else:
        most = wanted.max_throttle
        assert min(history.throttle_percent, most) <= decision.throttle_percent <= most
        if decision.throttle_percent > history.throttle_percent:
            assert history.has_stalled


@given(histories, st.integers(LEAST_MS, 10**6), parameters, st.integers(0, 10**6))
@settings(deadline=None)
def test_a_higher_limit_never_holds_up_the_switchover(
    history: RoundHistory, expected_ms: int, wanted: MigrationParameters, more_ms: int
) -> None:
    if isinstance(decide(history, expected_ms, LEAST_MS, wanted), SwitchOver):
        more = replace(wanted, downtime_limit_ms=wanted.downtime_limit_ms + more_ms)
        assert isinstance(decide(history, expected_ms, LEAST_MS, more), SwitchOver)


def play(rest_pages: list[int], wanted: MigrationParameters) -> list[GoOn | SwitchOver | GiveUp]:
    """Decide after each round, throttling as was decided; nothing ever fits the limit."""
    history, percent, decisions = RoundHistory(), 0, []
    for pages in rest_pages:
        history = history.with_round(RoundRecord(10_000, 100 * MS, pages, percent))
        decision = decide(history, 10**6, LEAST_MS, wanted)
        decisions.append(decision)
        if not isinstance(decision, GoOn):
            break
        percent = decision.throttle_percent
    return decisions


def throttles(rest_pages: list[int], wanted: MigrationParameters) -> list[int]:
    return [
        decision.throttle_percent
        for decision in play(rest_pages, wanted)
        if isinstance(decision, GoOn)
    ]


def test_it_is_throttled_in_steps_while_the_rest_does_not_shrink() -> None:
    wanted = MigrationParameters(auto_converge=True)
    steps = throttles([1000] * 30, wanted)
    assert steps[:7] == [0, 0, 20, 20, 30, 30, 40]
    assert steps[-1] == 99
    assert isinstance(play([1000] * 30, wanted)[-1], GiveUp)


def test_it_is_not_throttled_further_while_that_helps() -> None:
    rest = [1000, 1000, 1000, 700, 500, 350, 250, 175]
    assert throttles(rest, MigrationParameters(auto_converge=True)) == [0, 0, *[20] * 6]


def test_it_is_never_throttled_while_the_rest_shrinks_or_without_leave() -> None:
    assert not any(
        throttles([1000 >> n for n in range(9)], MigrationParameters(auto_converge=True))
    )
    assert not any(throttles([1000] * 29, MigrationParameters()))


def test_once_throttled_out_nothing_is_gained_by_more_rounds() -> None:
    wanted = MigrationParameters(auto_converge=True, max_throttle=20, max_rounds=1000)
    decisions = play([1000] * 1000, wanted)
    assert isinstance(decisions[-1], GiveUp)
    assert len(decisions) == 5
    going_on = replace(wanted, on_no_convergence="continue")
    assert throttles([1000] * 50, going_on)[3:] == [20] * 47


def test_a_throttle_that_the_operator_lowers_is_lowered() -> None:
    history = RoundHistory((RoundRecord(1, 1, 100, 80),))
    wanted = MigrationParameters(auto_converge=True, max_throttle=30)
    assert decide(history, 10**6, LEAST_MS, wanted) == GoOn(10**6, 30)
    assert decide(history, 10**6, LEAST_MS, replace(wanted, auto_converge=False)) == GoOn(10**6, 0)


@pytest.mark.parametrize(
    ("rounds", "goes_on"),
    [
        ([(100_000, 1000, 8000)], True),  # 80 ms; 720 pages are left of the next 90 ms
        ([(100_000, 1000, 1000)], False),  # 10 ms, of which 9.8 could be saved
        ([(100_000, 1000, 60_000)], False),  # too much is written in the 610 ms of another round
        ([(100_000, 1000, 30_000)], True),  # 300 ms, 93 of them after another
        ([(100_000, 1000, 30_000), (30_000, 310, 9300)], True),
        ([(100_000, 1000, 30_000), (30_000, 310, 9300), (9300, 103, 3100)], False),
        ([(100_000, 1000, 8000), (8000, 90, 4000)], False),  # 22 ms of 40
        ([(100, 0, 100)], False),
    ],
)
def test_a_downtime_that_one_more_round_halves_is_shortened(
    rounds: list[tuple[int, int, int]], goes_on: bool
) -> None:
    """A hundred pages a millisecond go out. Rounds: sent, milliseconds between scans, left."""
    records = [RoundRecord(sent, sent * MS // 100, left, 0, ms * MS) for sent, ms, left in rounds]
    history = RoundHistory(tuple(records))
    wanted = MigrationParameters(downtime_limit_ms=1000)
    decision = decide(history, 700, LEAST_MS, wanted)
    assert decision == (GoOn(700, at_once=True) if goes_on else SwitchOver(700))
    last_allowed = replace(wanted, max_rounds=len(rounds))
    assert decide(history, 700, LEAST_MS, last_allowed) == SwitchOver(700)


def test_nothing_is_decided_before_the_first_round() -> None:
    assert isinstance(decide(RoundHistory(), 1, LEAST_MS, MigrationParameters()), GoOn)


def test_less_than_the_least_cannot_be_had() -> None:
    history = RoundHistory((RoundRecord(0, MS, 0),))
    wanted = MigrationParameters(downtime_limit_ms=1)
    assert decide(history, LEAST_MS, LEAST_MS, wanted) == SwitchOver(LEAST_MS)
    assert isinstance(decide(history, LEAST_MS + 1, LEAST_MS, wanted), GoOn)


def test_an_unknown_downtime_goes_on_and_then_gives_up() -> None:
    history = RoundHistory((RoundRecord(0, 5 * MS, 100),))
    assert decide(history, None, LEAST_MS, MigrationParameters()) == GoOn(None)
    assert isinstance(decide(history, None, LEAST_MS, MigrationParameters(max_rounds=1)), GiveUp)


def test_giving_up_for_the_stop_alone_does_not_blame_the_guest() -> None:
    history = RoundHistory((RoundRecord(25_600, 100 * MS, 256),))
    decision = decide(history, 1785, 1775, MigrationParameters(max_rounds=1))
    assert isinstance(decision, GiveUp)
    assert "the stop alone takes longer than allowed" in decision.reason
    assert "1775 ms of it" in decision.reason
    assert "downtime-limit to 2231" in decision.advice
    wanted = MigrationParameters(max_rounds=1, downtime_limit_ms=1)
    decision = decide(history, LEAST_MS + 200, LEAST_MS, wanted)
    assert isinstance(decision, GiveUp)
    assert "the guest writes faster than it can be sent" in decision.reason


def test_giving_up_says_why_and_what_to_do() -> None:
    history = RoundHistory((RoundRecord(25_600, 1000 * MS, 25_600, 40),))
    wanted = MigrationParameters(max_rounds=1, max_bandwidth=100 * 2**20)
    decision = decide(history, 1026, LEAST_MS, wanted)
    assert isinstance(decision, GiveUp)
    assert "100.0 MiB" in decision.reason
    assert "100 MiB/s" in decision.reason
    assert "1026 ms" in decision.reason
    assert "40 % taken" in decision.reason
    assert "downtime-limit to 1282" in decision.advice
    assert "auto-converge" in decision.advice
    assert "max-bandwidth (100 MiB/s)" in decision.advice


def test_a_small_round_does_not_spoil_the_rate() -> None:
    fast = RoundRecord(100_000, 1000 * MS, 500)
    slow_because_small = RoundRecord(SAMPLE_PAGES - 1, 1000 * MS, 500)
    history = RoundHistory((fast, slow_because_small))
    assert history.pages_per_s == pytest.approx(100_000)
    assert RoundHistory((slow_because_small,)).pages_per_s == pytest.approx(SAMPLE_PAGES - 1)
