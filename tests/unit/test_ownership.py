"""The ownership protocol: explored whole, wrong variants caught, and documented as it is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pageferry.model.errors import LocalProtocolError
from pageferry.model.phase import (
    DESTINATION_TRANSITIONS,
    SOURCE_TRANSITIONS,
    DestinationPhase,
    SourcePhase,
    is_over,
    may_follow,
)
from pageferry.policy.ownership import (
    DESTINATION,
    RULES,
    SOURCE,
    DestinationEvent,
    DestinationStep,
    SourceEvent,
    SourceStep,
    destination_after,
    is_end,
    may_give_up,
    source_after,
    told,
)
from pageferry.testing.ownership.checker import explore, is_good_end, wrong_with
from pageferry.testing.ownership.document import DOES, brought_up_to_date
from pageferry.testing.ownership.moves import Explorer
from pageferry.testing.ownership.mutants import MUTANTS
from pageferry.testing.ownership.world import Physics, World

DOCUMENT = Path(__file__).parents[2] / "docs" / "ownership.md"


def test_never_two_owners_and_never_none_for_good() -> None:
    began_s = time.monotonic()
    found = explore()
    seconds = time.monotonic() - began_s
    print(f"{found.states} states, {found.transitions} moves, {found.ends} ends, {seconds:.1f} s")
    assert found.violation is None, str(found.violation)
    assert found.states > 10_000
    assert found.ends > 10


def test_never_two_owners_even_when_a_state_directory_is_lost() -> None:
    found = explore(Physics(journal_can_be_lost=True))
    assert found.violation is None, str(found.violation)


@pytest.mark.parametrize("name", MUTANTS)
def test_the_checker_catches(name: str) -> None:
    found = explore(MUTANTS[name])
    assert found.violation is not None
    print(found.violation)


def test_every_step_and_event_occurs_in_the_world() -> None:
    """What is never reached is not checked either."""
    seen: set[str] = set()
    physics, waiting, known = Physics(), [World()], {World()}
    explorer = Explorer(physics)
    while waiting:
        world = waiting.pop()
        seen |= {f"source {world.source_worker}", f"source {world.source_settler}"}
        seen |= {f"dest {world.destination_worker}", f"dest {world.destination_settler}"}
        seen |= {f"source journal {world.source_journal}"}
        seen |= {f"dest journal {world.destination_journal}"}
        for move in explorer.moves(world):
            if move.after not in known:
                known.add(move.after)
                waiting.append(move.after)
    for step in SourceStep:
        assert is_end(step) or f"source {step.value}" in seen
    for place in DestinationStep:
        assert is_end(place) or f"dest {place.value}" in seen
    for phase in DestinationPhase:
        assert phase is DestinationPhase.READY or f"dest journal {phase.value}" in seen
    for name in ("rounds", "switchover", "device", "commit", "completed", "failed"):
        assert f"source journal {name}" in seen


def test_the_document_is_up_to_date() -> None:
    text = DOCUMENT.read_text()
    assert text == brought_up_to_date(text), (
        "run python -m pageferry.testing.ownership.document docs/ownership.md"
    )


def test_every_step_is_documented_and_has_its_row() -> None:
    assert set(DOES) == {*SourceStep, *DestinationStep}
    assert {step for step in SourceStep if not is_end(step)} == set(SOURCE)
    assert {step for step in DestinationStep if not is_end(step)} == set(DESTINATION)


def test_every_phase_has_a_step_that_goes_on_from_it() -> None:
    assert set(RULES.source_resumes_at) == set(SourcePhase)
    assert set(RULES.destination_resumes_at) == set(DestinationPhase)
    for phase, step in RULES.source_resumes_at.items():
        assert is_end(step) == is_over(phase)
    for place, after in RULES.destination_resumes_at.items():
        assert is_end(after) == is_over(place)


def test_a_step_goes_on_from_a_phase_that_its_record_may_follow() -> None:
    for phase, step in RULES.source_resumes_at.items():
        if step in RULES.source_records:
            assert may_follow(phase, RULES.source_records[step])
    for place, after in RULES.destination_resumes_at.items():
        if after in RULES.destination_records:
            assert may_follow(place, RULES.destination_records[after])


def test_nothing_is_given_up_after_the_commit() -> None:
    assert {step for step in SourceStep if may_give_up(step)} == {
        SourceStep.CARRY,
        SourceStep.HAND_OVER,
    }
    assert {step for step in DestinationStep if may_give_up(step)} == {
        DestinationStep.RECEIVE,
        DestinationStep.LOAD,
        DestinationStep.RECORD_LOADED,
        DestinationStep.AWAIT_COMMIT,
    }


def test_an_event_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(LocalProtocolError, match="give-up cannot come of the step say-commit"):
        source_after(SourceStep.SAY_COMMIT, SourceEvent.GIVE_UP)
    with pytest.raises(LocalProtocolError):
        destination_after(DestinationStep.TAKEN, DestinationEvent.GIVE_UP)


@pytest.mark.parametrize("phase", ["ready", "loaded", "committed", "refused", "no-journal", "x"])
def test_most_answers_settle_nothing(phase: str) -> None:
    assert told(phase) is SourceEvent.TOLD_UNDECIDED
    assert source_after(SourceStep.ASK, told(phase)) is SourceStep.ASK


def test_every_end_of_a_journal_can_be_reached() -> None:
    assert {p for p in SourcePhase if not SOURCE_TRANSITIONS[p]} == {
        SourcePhase.COMPLETED,
        SourcePhase.CANCELLED,
        SourcePhase.FAILED,
    }
    assert {p for p in DestinationPhase if not DESTINATION_TRANSITIONS[p]} == {
        DestinationPhase.RUNNING,
        DestinationPhase.LOST,
        DestinationPhase.ABORTED,
    }


def test_the_beginning_is_fine_and_no_end() -> None:
    assert wrong_with(World()) is None
    assert not is_good_end(World())
