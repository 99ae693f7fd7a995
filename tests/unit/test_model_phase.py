"""Phases of the journal, and who owns the guest."""

from __future__ import annotations

import itertools

import pytest

from pageferry.model.errors import LocalProtocolError
from pageferry.model.phase import (
    DESTINATION_TRANSITIONS,
    SOURCE_TRANSITIONS,
    DestinationPhase,
    SourcePhase,
    check_transition,
    destination_may_run,
    is_over,
    may_follow,
    owner_may_resume,
)

BEFORE_COMMIT = [
    SourcePhase.LOOK,
    SourcePhase.ARM,
    SourcePhase.COLD,
    SourcePhase.RESIDENT,
    SourcePhase.ROUNDS,
    SourcePhase.SWITCHOVER,
    SourcePhase.DEVICE,
]
STARTED = [DestinationPhase.COMMITTED, DestinationPhase.RUNNING]


def test_every_phase_has_its_transitions() -> None:
    assert set(SOURCE_TRANSITIONS) == set(SourcePhase)
    assert set(DESTINATION_TRANSITIONS) == set(DestinationPhase)


def test_whole_migration() -> None:
    source = [*BEFORE_COMMIT, SourcePhase.COMMIT, SourcePhase.COMPLETED]
    for old, new in itertools.pairwise(source):
        check_transition(old, new)
    destination = [phase for phase in DestinationPhase if phase is not DestinationPhase.ABORTED]
    for before, after in itertools.pairwise(destination):
        check_transition(before, after)


@pytest.mark.parametrize("phase", BEFORE_COMMIT)
def test_source_can_give_up_until_commit(phase: SourcePhase) -> None:
    assert may_follow(phase, SourcePhase.CANCELLED)
    assert may_follow(phase, SourcePhase.FAILED)


def test_nothing_can_be_cancelled_after_commit() -> None:
    assert not may_follow(SourcePhase.COMMIT, SourcePhase.CANCELLED)


def test_commit_comes_only_after_device() -> None:
    before = [phase for phase in SourcePhase if may_follow(phase, SourcePhase.COMMIT)]
    assert before == [SourcePhase.DEVICE]


def test_destination_is_committed_only_when_loaded_and_runs_only_when_committed() -> None:
    phases = list(DestinationPhase)
    loaded, committed = DestinationPhase.LOADED, DestinationPhase.COMMITTED
    assert [phase for phase in phases if may_follow(phase, committed)] == [loaded]
    assert [phase for phase in phases if may_follow(phase, DestinationPhase.RUNNING)] == [committed]


def test_no_way_leads_back() -> None:
    for phase in SourcePhase:
        assert all(
            list(SourcePhase).index(n) > list(SourcePhase).index(phase)
            for n in SOURCE_TRANSITIONS[phase]
        )
    for place in DestinationPhase:
        assert all(
            list(DestinationPhase).index(n) > list(DestinationPhase).index(place)
            for n in DESTINATION_TRANSITIONS[place]
        )


def test_illegal_transition_names_both() -> None:
    with pytest.raises(LocalProtocolError, match="commit cannot follow phase cold"):
        check_transition(SourcePhase.COLD, SourcePhase.COMMIT)
    with pytest.raises(LocalProtocolError):
        check_transition(DestinationPhase.ABORTED, DestinationPhase.RUNNING)
    with pytest.raises(LocalProtocolError):
        check_transition(SourcePhase.LOOK, SourcePhase.LOOK)


def test_what_is_over() -> None:
    assert {phase for phase in SourcePhase if is_over(phase)} == {
        SourcePhase.COMPLETED,
        SourcePhase.CANCELLED,
        SourcePhase.FAILED,
    }
    assert {phase for phase in DestinationPhase if is_over(phase)} == {
        DestinationPhase.RUNNING,
        DestinationPhase.ABORTED,
    }


@pytest.mark.parametrize("source", list(SourcePhase))
@pytest.mark.parametrize("destination", [None, *DestinationPhase])
def test_source_and_destination_never_both_may_run(
    source: SourcePhase, destination: DestinationPhase | None
) -> None:
    if destination is not None and owner_may_resume(source, destination):
        assert not destination_may_run(destination)


@pytest.mark.parametrize("source", BEFORE_COMMIT)
def test_source_owns_the_guest_until_commit(source: SourcePhase) -> None:
    for destination in (None, *DestinationPhase):
        assert owner_may_resume(source, destination) == (destination not in STARTED)


def test_after_commit_only_the_promise_of_the_destination_counts() -> None:
    answers = [None, *DestinationPhase]
    enough = [answer for answer in answers if owner_may_resume(SourcePhase.COMMIT, answer)]
    assert enough == [DestinationPhase.ABORTED]


def test_source_never_resumes_what_it_gave_away() -> None:
    assert not any(
        owner_may_resume(SourcePhase.COMPLETED, answer) for answer in (None, *DestinationPhase)
    )
