"""The small pieces of the choreography that need neither kernel nor QEMU."""

from __future__ import annotations

import threading

import pytest
import trio

from pageferry.control import schema, types
from pageferry.migration.cancellation import Cancellation
from pageferry.migration.journal import JournalError
from pageferry.migration.outcome import explained, weightiest
from pageferry.migration.progress import Progress
from pageferry.migration.stoppable import run_stoppable
from pageferry.model.errors import (
    MigrationCancelledError,
    MigrationFailedError,
    OutcomeUnknownError,
    PeerLostError,
    QemuError,
    RefusedError,
)


async def test_cancel_before_the_commit_excludes_it() -> None:
    cancellation = Cancellation()
    assert cancellation.request()
    assert cancellation.came_first
    with pytest.raises(MigrationCancelledError):
        cancellation.begin_commit()


async def test_commit_excludes_a_later_cancel() -> None:
    cancellation = Cancellation()
    cancellation.begin_commit()
    assert not cancellation.request()
    assert not cancellation.came_first
    assert not cancellation.scope.cancel_called


async def test_a_cancelled_thread_is_stopped_and_awaited() -> None:
    stop = threading.Event()
    ended = threading.Event()

    def work() -> None:
        stop.wait(timeout=10)
        ended.set()

    with trio.move_on_after(0.05) as scope:
        await run_stoppable(work, stop.set)
    assert scope.cancelled_caught
    assert ended.is_set(), "the thread had ended before the cancellation went on"


async def test_what_a_thread_raises_and_returns_arrives() -> None:
    def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await run_stoppable(fails, lambda: None)
    assert await run_stoppable(lambda: 42, lambda: None) == 42


def test_the_cause_outweighs_its_effects() -> None:
    cause = QemuError("gone")
    group = ExceptionGroup("", [PeerLostError("a"), ExceptionGroup("", [cause, OSError("b")])])
    assert weightiest(group) is cause


def test_an_unknown_outcome_outweighs_everything() -> None:
    unknown = OutcomeUnknownError("?")
    assert weightiest(ExceptionGroup("", [QemuError("a"), unknown])) is unknown


def test_a_bug_is_not_hidden_behind_what_it_caused() -> None:
    bug = ZeroDivisionError()
    error = explained(ExceptionGroup("", [RefusedError("a", advice="b"), bug]))
    assert error.__cause__ is bug
    assert "internal error" in error.message


@pytest.mark.parametrize("raised", [JournalError("full"), OSError(5, "io")])
def test_what_the_system_refuses_fails_the_migration(raised: Exception) -> None:
    error = explained(raised)
    assert isinstance(error, MigrationFailedError)
    assert error.advice


def test_what_is_told_of_a_migration_is_what_is_declared() -> None:
    progress = Progress("00", "g", 0)
    schema.check(types.MIGRATION_INFO, progress.info(1), "")
    progress.enter("rounds", 100)
    progress.sent(10, 2, saved_bytes=4096)
    progress.paged(3, 2, 1)
    progress.verified = True
    progress.downtime_ns, progress.expected_downtime_ms = 5, 6
    progress.swap_bandwidth = progress.throttle_percent = 7
    progress.switchover.last_round_ns = 8
    progress.error = RefusedError("no", advice="do").report()
    info = progress.info(2_000_000)
    schema.check(types.MIGRATION_INFO, info, "")
    # The daemon adds the role; all else that is declared comes from here.
    assert {member.name for member in types.MIGRATION_INFO.members} == {*info, "role"}


def test_progress_never_runs_backwards() -> None:
    progress = Progress("00", "g", 0)
    progress.enter("cold", 100)
    done = []
    for pages in (10, 50, 60, 0, 5):
        progress.sent(pages, 0)
        info = progress.info(1)
        done.append(info["progress"]["phase-done-bytes"])
        assert info["progress"]["phase-done-bytes"] <= info["progress"]["phase-total-bytes"]
        assert info["ram"]["remaining"] >= 0
    assert done == sorted(done)
