"""Migrations that are not at an end and have no worker any more: the daemon settles them.

At start-up, after the death of a worker, and whenever a worker ends with its journal open, the
journal is settled by what it says. What cannot be settled yet (the other agent cannot be reached,
QEMU does not answer, the disk is full, an earlier daemon's worker goes on) is tried again, after a
second at first and at least once a minute. What settling never does is to guess.

A guest with an open journal is not migrated: an old journal that is settled after a new migration
could let the guest run twice.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from pageferry.daemon.hooks import Hooks
from pageferry.daemon.settling import OpenJournal, living_worker, open_journals
from pageferry.migration.journal import JournalError
from pageferry.model.errors import PageferryError
from pageferry.model.gone import DestinationGone

log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
"""A guest may be waiting, paused, for the other host to come back; one question a minute is
nothing."""

Outcome = dict[str, Any]


def next_delay_s(delay_s: float) -> float:
    """The delay after one of *delay_s* that was in vain."""
    return min(2 * delay_s, RETRY_MAX_S)


@dataclass(slots=True)
class _Attempt:
    journals: list[OpenJournal]
    due_s: float = -math.inf
    delay_s: float = RETRY_FIRST_S
    message: str = ""


@dataclass(slots=True)
class Leftovers:
    """Open journals of this host. `scan` once, then `run`; `note` when a worker has ended.

    ``is_running`` says whether this daemon has a worker for a migration, ``emit`` sends an event,
    and ``settled`` is called after one was settled.
    """

    state_dir: Path
    hooks: Hooks
    is_running: Callable[[str], bool]
    emit: Callable[[str, dict[str, Any]], None]
    settled: Callable[[], Awaitable[None]]
    _open: dict[str, _Attempt] = field(default_factory=dict)
    _lock: trio.Lock = field(default_factory=trio.Lock)
    _woken: trio.Event = field(default_factory=trio.Event)

    def scan(self) -> None:
        """Find what is open."""
        for journal in open_journals(self.state_dir):
            log.warning(
                "migration %s was left over: %s: %s",
                journal.migration_id,
                journal.role,
                journal.phase,
            )
            self.note(journal.migration_id)

    def note(self, migration_id: str) -> None:
        """Look anew at one migration, of which a worker has ended or which somebody settled."""
        found = open_journals(self.state_dir, migration_id)
        if found:
            self._open[migration_id] = _Attempt(found)
            self._woken.set()
        else:
            self._open.pop(migration_id, None)

    def count(self) -> int:
        """How many migrations are open without a worker of this daemon."""
        return sum(not self.is_running(migration_id) for migration_id in self._open)

    def of_guest(self, key: str) -> str | None:
        """The open migration of the guest whose QMP socket has the real path *key*."""
        for migration_id, attempt in self._open.items():
            for journal in attempt.journals:
                if journal.qmp and os.path.realpath(journal.qmp) == key:
                    return migration_id
        return None

    async def run(self) -> None:
        """Settle, and try again what could not be, until cancelled."""
        while True:
            self._woken = trio.Event()
            for migration_id in list(self._open):
                await self._try(migration_id)
            due_s = min((each.due_s for each in self._open.values()), default=math.inf)
            with trio.move_on_at(due_s):
                await self._woken.wait()

    async def settle(
        self,
        migration_id: str | None,
        *,
        only_plan: bool = False,
        word: DestinationGone | None = None,
    ) -> list[Outcome]:
        """Settle one migration, or all that are open, now; or only say what that would do. *word*:
        an operator's that the one migration's destination is gone for good.

        Raises JournalError on an ID that is none.
        """
        if migration_id is None:
            wanted = [each.migration_id for each in open_journals(self.state_dir)]
            wanted = [each for each in dict.fromkeys(wanted) if not self.is_running(each)]
        else:
            wanted = [migration_id]
        told = []
        async with self._lock:
            for each in wanted:
                outcomes = await self._outcomes(each, only_plan=only_plan, word=word)
                if all(outcome.get("settled") for outcome in outcomes):
                    # Its guest is free for another migration from now on.
                    self._open.pop(each, None)
                told += outcomes
        return told

    async def _try(self, migration_id: str) -> None:
        attempt = self._open.get(migration_id)
        if attempt is None or attempt.due_s > trio.current_time() or self.is_running(migration_id):
            return
        message = ""
        async with self._lock:
            try:
                outcomes = await self._outcomes(migration_id)
            except (PageferryError, JournalError, OSError) as error:
                outcomes, message = [{"settled": False}], str(error)
            except Exception:
                log.exception("%s: settling failed", migration_id)
                outcomes, message = [{"settled": False}], "an internal error; see above"
        if all(each.get("settled") for each in outcomes):
            self._open.pop(migration_id, None)
            await self.settled()
            return
        message = message or "; ".join(
            str(each.get("message", "")) for each in outcomes if not each.get("settled")
        )
        if message != attempt.message:
            log.warning("%s: cannot be settled yet: %s", migration_id, message)
        attempt.message = message
        attempt.due_s = trio.current_time() + attempt.delay_s
        attempt.delay_s = next_delay_s(attempt.delay_s)

    async def _outcomes(
        self, migration_id: str, *, only_plan: bool = False, word: DestinationGone | None = None
    ) -> list[Outcome]:
        pid = living_worker(self.state_dir, migration_id)
        if pid is not None:
            return [
                {
                    "migration-id": migration_id,
                    "phase": "busy",
                    "settled": False,
                    "message": f"{_process(pid)} still sees to it; ask again later",
                }
            ]
        if only_plan:
            return await self.hooks.plan(self.state_dir, migration_id, word=word)
        if word is not None:
            log.warning(
                "%s: uid %d (pid %d) says that the destination is gone for good",
                migration_id,
                word.uid,
                word.pid,
            )
        outcomes = await self.hooks.settle(self.state_dir, migration_id, word=word)
        for each in outcomes:
            if each.get("settled") and each.get("plan"):
                log.warning("%s: settled: %s", migration_id, each.get("message"))
                keys = ("migration-id", "guest", "role", "phase", "message")
                self.emit("MIGRATION_SETTLED", {key: str(each.get(key, "")) for key in keys})
        return outcomes


def _process(pid: int) -> str:
    return f"worker process {pid}" if pid else "a process outside of this PID namespace"
