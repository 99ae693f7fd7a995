"""The soak's plan and its judgement: pure, so that a seed means the same everywhere."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.model.residency import ResidencyBytes
from pageferry.testing.soak.judging import (
    Finding,
    Kind,
    Tally,
    overlaps,
    owners_wrong,
    residency_wrong,
    running_intervals,
    speakers_wrong,
)
from pageferry.testing.soak.plan import HOLDING, Fault, Moment, Step, steps

MIB = 1024 * 1024
BAG = len(Fault) + 4


def first(count: int, seed: int = 7) -> list[Step]:
    return list(itertools.islice(steps(seed), count))


def test_a_seed_gives_the_same_steps_every_time() -> None:
    assert first(100) == first(100)
    assert first(100) != first(100, seed=8)


def test_a_step_does_not_depend_on_how_many_are_taken() -> None:
    assert first(100)[:10] == first(10)


def test_each_bag_holds_every_fault_once_and_undisturbed_hops_more_often() -> None:
    for start in (0, BAG):
        faults = [step.fault for step in first(2 * BAG)[start : start + BAG]]
        assert all(faults.count(fault) == 1 for fault in set(Fault) - {Fault.NONE, Fault.CANCEL})
        assert faults.count(Fault.NONE) == faults.count(Fault.CANCEL) == 3


def test_the_guests_take_turns_and_each_meets_every_fault() -> None:
    taken = first(40 * BAG)
    assert [step.number for step in taken] == list(range(1, 40 * BAG + 1))
    for guest in ("freestanding", "linux"):
        assert {step.fault for step in taken if step.guest == guest} == set(Fault)


def test_moments_are_phases_that_a_migration_comes_to() -> None:
    for step in first(40 * BAG):
        phases = SourcePhase if step.moment.role == "source" else DestinationPhase
        assert step.moment.phase in [each.value for each in phases]
        assert step.moment.phase not in ("completed", "failed", "running", "aborted", "reclaimed")
        assert 0 <= step.moment.delay_ms <= 40
        assert 0.2 <= step.hold_s <= 4


def test_a_destination_is_not_killed_when_the_guest_may_be_its_own() -> None:
    killed = [step for step in first(100 * BAG) if step.fault is Fault.KILL_DESTINATION_QEMU]
    assert {step.moment.phase for step in killed}.isdisjoint({"commit", "committed"})


def test_a_step_says_what_it_does() -> None:
    step = next(step for step in first(BAG) if step.fault in HOLDING)
    said = str(step)
    assert said.startswith(f"{step.number}: {step.guest} verify=")
    assert f"{step.fault.value} {step.moment} for {step.hold_s:.1f} s" in said
    assert str(Moment("source", "arm", 1.25)) == "1.2 ms after source:arm"


@pytest.mark.parametrize(
    ("states", "kind"),
    [
        ({"a": "running", "b": "inmigrate"}, None),
        ({"a": "gone", "b": "running"}, None),
        ({"a": "running", "b": "running"}, Kind.DOUBLED),
        ({"a": "postmigrate", "b": "gone"}, Kind.LOST),
    ],
)
def test_exactly_one_qemu_runs_the_guest(states: dict[str, str], kind: Kind | None) -> None:
    assert [found.kind for found in owners_wrong(states)] == ([] if kind is None else [kind])


def event(name: str, at_us: int) -> dict[str, Any]:
    return {"event": name, "timestamp": {"seconds": at_us // 10**6, "microseconds": at_us % 10**6}}


def test_running_times_come_from_events() -> None:
    events = [event("STOP", 50), event("MIGRATION", 51), event("RESUME", 70), event("STOP", 90)]
    assert running_intervals(events, runs_from_us=0) == [(0, 50), (70, 90)]
    assert running_intervals([event("RESUME", 1_500_000)], runs_from_us=None) == [(1_500_000, None)]
    assert running_intervals([], runs_from_us=None) == []


def test_two_that_run_at_the_same_time_are_found() -> None:
    assert overlaps([(0, 50)], [(60, None)]) == []
    assert overlaps([(0, 50)], [(50, None)]) == []
    assert [found.kind for found in overlaps([(0, 61)], [(60, None)])] == [Kind.DOUBLED]
    assert overlaps([(0, None)], [(60, 70)]) != []
    assert overlaps([(0, 50), (80, None)], [(60, 70)]) == []


def test_who_speaks_after_the_guest_has_left_is_found() -> None:
    assert speakers_wrong([4, 5], source=4, destination=5) == []
    assert speakers_wrong([5], source=4, destination=5) == []
    assert speakers_wrong([4], source=4, destination=5) == []
    assert [each.kind for each in speakers_wrong([4, 5, 4], 4, 5)] == [Kind.DOUBLED]


def memory(resident_mib: int, swapped_mib: int) -> ResidencyBytes:
    return ResidencyBytes(resident_mib * MIB, swapped_mib * MIB, 0)


def test_memory_that_is_not_where_it_was_is_found() -> None:
    here = memory(100, 100)
    assert residency_wrong(here, memory(80, 120), 0) == []
    assert [each.kind for each in residency_wrong(here, memory(55, 100), 0)] == [Kind.MISPLACED]
    assert residency_wrong(here, memory(55, 100), 8 * MIB) == []
    assert [each.kind for each in residency_wrong(here, memory(200, 0), 8 * MIB)] == [
        Kind.MISPLACED,
        Kind.MISPLACED,
    ]


def test_a_tally_counts_what_struck() -> None:
    tally = Tally()
    tally.count("none", struck=False, carried=True)
    tally.count("cancel", struck=True, carried=False)
    tally.count("cancel", struck=False, carried=True)
    tally.count("cut", struck=True, carried=False)
    tally.findings.append(Finding(Kind.LEAKED, "a journal"))
    told = tally.as_json()
    assert {key: told[key] for key in ("hops", "faults", "cancels", "steps")} == {
        "hops": 2,
        "faults": 1,
        "cancels": 1,
        "steps": 4,
    }
    assert (told["lost"], told["doubled"], told["corrupt"], told["leaked"]) == (0, 0, 0, 1)
    assert told["findings"] == ["leaked: a journal"]
