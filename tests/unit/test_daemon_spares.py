"""A spare worker: there before it is needed, and gone with the daemon."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from pageferry.daemon.spares import Spares
from pageferry.daemon.worker_process import WORKER_COMMAND, WorkerProcess
from pageferry.migration.worker import SPARE


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - the processes of others have no events
            await trio.sleep(0.01)


async def test_a_spare_waits_until_the_link_ends(nursery: trio.Nursery) -> None:
    spares = Spares(WORKER_COMMAND, wanted=True)
    nursery.start_soon(spares.run)
    await until(lambda: spares.is_ready)
    spare = spares.take()
    assert spare is not None
    await until(lambda: _name_of(spare) == SPARE)
    assert spares.take() is None, "each goes to one migration only"
    assert await spare.end() == "exit status 0"
    nursery.cancel_scope.cancel()


async def test_it_ends_with_the_daemon() -> None:
    spares = Spares(WORKER_COMMAND, wanted=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spares.run)
        await until(lambda: spares.is_ready)
        pid = spares.pid
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_one_that_died_is_not_handed_out(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    spares = Spares((sys.executable, "-c", "import time; time.sleep(60)"), wanted=True)
    nursery.start_soon(spares.run)
    await until(lambda: spares.is_ready)
    os.kill(spares.pid, signal.SIGKILL)
    await until(lambda: not spares.is_ready)
    assert spares.take() is None
    assert "ended before it was needed" in caplog.text
    nursery.cancel_scope.cancel()


async def test_without_one_wanted_there_is_none(nursery: trio.Nursery) -> None:
    spares = Spares(WORKER_COMMAND, wanted=False)
    nursery.start_soon(spares.run)
    await trio.testing.wait_all_tasks_blocked()
    assert spares.take() is None
    nursery.cancel_scope.cancel()


def _name_of(worker: WorkerProcess) -> str:
    return Path(f"/proc/{worker.pid}/comm").read_text().strip()
