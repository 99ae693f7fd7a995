"""What can go wrong at the very commit: the record that does not fit, the `cont` that is not
answered, clocks that differ."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import pytest

from pageferry.migration.journal import read_journal
from pageferry.qemu.switchover import CONT_TIMEOUT_S
from pageferry.testing.faults import BEFORE_CONT, go_path, reached_path
from pageferry.testing.lab.clock import clock_off_by
from pageferry.testing.lab.daemons import LabDaemon
from pageferry.testing.lab.packages import QemuBinary
from tests.faults.afterwards import assert_settled
from tests.faults.cases import Case, D, Fault, Owner, Phase, S
from tests.faults.recording import WHOLE_VARIABLE
from tests.faults.strikes import STRIKES
from tests.faults.world import World, eventually, world_of

pytestmark = [
    *(pytest.mark.root, pytest.mark.swap, pytest.mark.qemu),
    pytest.mark.usefixtures("host_swap"),
]

FITS_BYTES: Final = 20
"""Of the next record, which has 150."""

DAY_S: Final = 86_400

IS_WHOLE: Final = WHOLE_VARIABLE in os.environ
"""Else the cut for every day."""


def allow_no_record(daemon: LabDaemon, worker: int) -> None:
    """The kernel lets the worker write the beginning of one more record, and no further byte."""
    (journal,) = daemon.state_directory.glob("*.journal")
    most = journal.stat().st_size + FITS_BYTES
    _soft, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (most, hard))


@pytest.mark.parametrize("phase", [S.DEVICE, D.LOADED] if IS_WHOLE else [S.DEVICE])
def test_a_commit_whose_record_does_not_fit(phase: Phase, newest_qemu: QemuBinary) -> None:
    """The one after this phase. What was written of it is no record."""
    with world_of(Case(phase, Fault.CANCELLED_AT_SOURCE), newest_qemu) as world:
        world.begin()
        world.wait_held(phase)
        daemon = world.daemons[phase is D.LOADED]
        allow_no_record(daemon, world.worker(daemon))
        world.release(phase)
        outcome = assert_settled(world)
        assert outcome.owner is Owner.SOURCE, world.logs()
        assert "File too large" in daemon.log()
        if phase is S.DEVICE:
            assert "the commit could not be journalled" in outcome.message


def _hang(world: World) -> None:
    """It does what it was told when nobody waits for the answer any more."""
    STRIKES[Fault.DESTINATION_QEMU_HANGS](world)
    go_path(world.held, BEFORE_CONT).touch()
    time.sleep(CONT_TIMEOUT_S + 4)


def _hang_and_end(world: World) -> None:
    STRIKES[Fault.DESTINATION_QEMU_HANGS](world)
    go_path(world.held, BEFORE_CONT).touch()
    time.sleep(1)
    STRIKES[Fault.DESTINATION_QEMU_KILLED](world)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """What the destination's QEMU does instead of answering, and whose the guest is then."""

    strike: Callable[[World], None]
    owner: Owner
    phases: tuple[str, str]


UNANSWERED: Final[Mapping[str, Unanswered]] = {
    # It never ran; but who could know that.
    "hangs-and-ends": Unanswered(_hang_and_end, Owner.ENDED, ("completed", "lost")),
    "hangs": Unanswered(_hang, Owner.DESTINATION, ("completed", "running")),
}

CHOSEN: Final = list(UNANSWERED if IS_WHOLE else ["hangs-and-ends"])


@pytest.mark.parametrize("name", CHOSEN)
def test_a_cont_that_is_not_answered(name: str, newest_qemu: QemuBinary) -> None:
    struck = UNANSWERED[name]
    # Not held there: a fault point would only be in the way.
    case = Case(S.LOOK, Fault.CANCELLED_AT_SOURCE)
    with world_of(case, newest_qemu, waits=(BEFORE_CONT,)) as world:
        world.begin()
        world.release(S.LOOK)
        eventually(reached_path(world.held, BEFORE_CONT).exists, world.logs)
        struck.strike(world)
        world.stack.close()
        assert assert_settled(world).owner is struck.owner, world.logs()
        found = world.pair.journal_phases()
        assert (found["source"], found["destination"]) == struck.phases
        if name == "hangs":
            assert "QEMU neither runs the guest nor ends" in world.pair.there.log()
        if struck.owner is Owner.ENDED:
            assert world.pair.source.status() == "postmigrate", "it may have run over there"


def set_clock(daemon: LabDaemon, seconds: int) -> None:
    """For its next start, and all that it starts."""
    daemon.environment = {**daemon.environment, **clock_off_by(seconds)}


def times_s(daemon: LabDaemon) -> tuple[float, float]:
    """When the first and the last record of its journal were written, by its own clock."""
    (path,) = daemon.state_directory.glob("*.journal")
    state = read_journal(path)
    assert state is not None
    return state.began_ns / 1e9, state.ended_ns / 1e9


CLOCK_CASES: Final = [
    (D.COMMITTED, Owner.DESTINATION),
    *([(S.COMMIT, Owner.SOURCE)] if IS_WHOLE else []),
]


@pytest.mark.parametrize(("phase", "owner"), CLOCK_CASES)
def test_clocks_that_differ_by_days_and_are_set_meanwhile(
    phase: Phase, owner: Owner, newest_qemu: QemuBinary
) -> None:
    """Nothing that counts is told by the time of day."""
    with world_of(Case(phase, Fault.SOURCE_DAEMON_KILLED), newest_qemu) as world:
        for daemon, seconds in zip(world.daemons, (2 * DAY_S, -DAY_S), strict=True):
            daemon.stop()
            set_clock(daemon, seconds)
            daemon.start()
        world.begin()
        world.wait_held(phase)
        workers = [world.worker(daemon) for daemon in world.daemons]
        for daemon, seconds in zip(world.daemons, (-365 * DAY_S, 30 * DAY_S), strict=True):
            daemon.kill()
            set_clock(daemon, seconds)
        for worker in workers:
            os.kill(worker, 9)
        for daemon in world.daemons:
            daemon.start()
        assert assert_settled(world).owner is owner, world.logs()
        (ours_began_s, ours_ended_s), (theirs_began_s, theirs_ended_s) = map(times_s, world.daemons)
        assert ours_began_s - time.time() > DAY_S
        assert ours_ended_s < ours_began_s - 300 * DAY_S, "its records go back in time"
        assert theirs_began_s < time.time() - DAY_S / 2
        assert theirs_ended_s > time.time() + 20 * DAY_S
