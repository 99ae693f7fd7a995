"""Threads that a cancellation can end.

trio cannot cancel a thread, and the threads here block in sends, receives and swap reads. What ends
them is `stop`, which the caller provides: it must make the thread's blocking calls return soon
(shutting sockets down does). The thread's end is then awaited, so that no thread ever touches a
mapping or a descriptor that has been closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def run_stoppable(work: Callable[[], T], stop: Callable[[], None]) -> T:
    """Run *work* in a thread and return what it returns; on cancellation call *stop* and wait.

    After a cancellation the thread has ended. An exception that the thread raised because it was
    stopped is dropped in favour of the cancellation.
    """
    finished = trio.Event()
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - carried over to the waiting task
            failure.append(error)

    async def run() -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(body)
        finished.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            await finished.wait()
        except trio.Cancelled:
            stop()
            raise
    if failure:
        raise failure[0]
    return outcome[0]
