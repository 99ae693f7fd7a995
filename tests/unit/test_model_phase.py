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
    is_over,
    may_follow,
    phase_of,
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


def test_every_phase_has_its_transitions() -> None:
    assert set(SOURCE_TRANSITIONS) == set(SourcePhase)
    assert set(DESTINATION_TRANSITIONS) == set(DestinationPhase)


def test_whole_migration() -> None:
    source = [*BEFORE_COMMIT, SourcePhase.COMMIT, SourcePhase.COMPLETED]
    for old, new in itertools.pairwise(source):
        check_transition(old, new)
    aside = (DestinationPhase.REFUSED, DestinationPhase.LOST, DestinationPhase.ABORTED)
    destination = [phase for phase in DestinationPhase if phase not in aside]
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
        DestinationPhase.LOST,
        DestinationPhase.ABORTED,
    }


def test_a_commit_that_was_journalled_is_not_aborted() -> None:
    """Only QEMU's refusal leads from there to `aborted`."""
    assert not may_follow(DestinationPhase.COMMITTED, DestinationPhase.ABORTED)
    assert may_follow(DestinationPhase.COMMITTED, DestinationPhase.REFUSED)
    assert may_follow(DestinationPhase.REFUSED, DestinationPhase.ABORTED)
    assert not may_follow(DestinationPhase.REFUSED, DestinationPhase.RUNNING)


def test_phases_by_name() -> None:
    assert phase_of("source", "commit") is SourcePhase.COMMIT
    assert phase_of("destination", "device") is DestinationPhase.DEVICE
    with pytest.raises(ValueError, match="commit"):
        phase_of("destination", "commit")
