"""A worker process that is started before it is needed.

Python and its modules take a quarter of a second to start, on either side and one after the other:
half of the time that a gigabyte of resident memory takes. A spare has that behind it and waits for
its job on its link; when the daemon ends it sees the end of the link and ends as well.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import trio

from pageferry.daemon.worker_process import WorkerProcess

log = logging.getLogger(__name__)

REFILL_S: Final = 5.0
"""After a spare has been taken: the next one must not compete with the migration that begins."""

GOODBYE_S: Final = 2.0
"""For a spare to end with the daemon, which takes some milliseconds; it ends without us as well."""


class Spares:
    """At most one spare worker. `run` must be running, or there is none."""

    def __init__(self, command: Sequence[str], *, wanted: bool) -> None:
        self._command = command
        self._wanted = wanted
        self._spare: WorkerProcess | None = None
        self._taken = trio.Event()

    async def run(self) -> None:
        """Keep a spare until cancelled, which lets it end."""
        if not self._wanted:
            await trio.sleep_forever()
        try:
            while True:
                await self._start()
                await self._taken.wait()
                await trio.sleep(REFILL_S)
        finally:
            if self._spare is not None:
                with trio.move_on_after(GOODBYE_S, shield=True):
                    await self._spare.end()

    @property
    def pid(self) -> int:
        """The spare's process; 0 when there is none."""
        return self._spare.pid if self._spare else 0

    @property
    def is_ready(self) -> bool:
        """Whether there is one that runs."""
        return self._spare is not None and self._spare.is_running

    def take(self) -> WorkerProcess | None:
        """The spare, for the caller to end; None when there is none that runs."""
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        self._taken.set()
        if spare.is_running:
            return spare
        log.warning("the spare worker process %d ended before it was needed", spare.pid)
        spare.abandon()
        return None

    async def _start(self) -> None:
        self._taken = trio.Event()
        try:
            self._spare = await WorkerProcess.spawn(self._command)
        except OSError as error:
            # The next migration starts its own, and says so if that fails too.
            log.warning("no spare worker process could be started: %s", error.strerror or error)
            self._taken.set()
