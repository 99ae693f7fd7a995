"""The lives of worker processes: started or taken over, listened to, reaped, settled.

A worker that died without its last word has left a guest that may be stopped: it is settled from
its journal, and only after the process has provably ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import trio

from pageferry.daemon.announcing import Announcer
from pageferry.daemon.descriptors import FdOwner
from pageferry.daemon.history import History, record_of
from pageferry.daemon.hooks import Hooks
from pageferry.daemon.keeping import Keeper, from_job, parse_name
from pageferry.daemon.migrations import Migration, MigrationLog
from pageferry.daemon.settling import settle_after_death
from pageferry.daemon.spares import Spares
from pageferry.daemon.worker_process import WorkerProcess
from pageferry.logs import log_context
from pageferry.migration.link import LinkLostError
from pageferry.model.errors import MigrationFailedError, RefusedError

log = logging.getLogger(__name__)

START_S: Final = 10.0
"""How long a worker may take to start, or to say who it is: Python starts in half a second."""

Packet = dict[str, Any]


class Workers:
    """One for each migration that runs, and a spare if *keep_spare*. `run` must be running.

    *ended* is called with a migration's ID when its worker has ended, before that is told.
    """

    def __init__(
        self,
        migrations: MigrationLog,
        history: History,
        announcer: Announcer,
        keeper: Keeper,
        *,
        hooks: Hooks,
        command: Sequence[str],
        keep_spare: bool,
        state_dir: Path,
        ended: Callable[[str], None],
    ) -> None:
        self._migrations = migrations
        self._history = history
        self._announcer = announcer
        self._keeper = keeper
        self._hooks = hooks
        self._command = command
        self._spares = Spares(command, wanted=keep_spare)
        self._state_dir = state_dir
        self._ended = ended
        self.on_end: Callable[[Migration, float], None] = lambda _migration, _duration_s: None
        """Called with each migration that is over, and its duration in seconds."""
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch over workers until cancelled, which leaves them to themselves."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._spares.run()

    def start(self, migration: Migration, job: Packet, fd: int | None = None) -> None:
        """Start a worker with this job, and *fd* beside it, which is ours from now on."""
        self._start_soon(self._live, migration, job, FdOwner(fd))

    async def _live(self, migration: Migration, job: dict[str, Any], fd: FdOwner) -> None:
        """The life of one worker that is started here."""
        with _logged(migration), fd:
            self._announcer.status(migration)
            try:
                worker = self._spares.take() or await WorkerProcess.spawn(self._command)
            except OSError as error:
                self._end(migration, {}, _spawn_failed(error).report())
                return
            log.info(
                "%s: worker %d, %s of guest %s",
                migration.migration_id,
                worker.pid,
                migration.role,
                migration.guest.label,
            )
            try:
                await worker.send(job, fd.numbers)
                fd.close()
                # Not before it has its job: whoever takes it over expects it to know who it is.
                self._keeper.keep(migration, worker)
            except LinkLostError:
                log.debug("%s: the worker ended before it had its job", migration.migration_id)
            except trio.Cancelled:
                worker.abandon()
                raise
            await self._see_through(migration, worker)

    async def _see_through(self, migration: Migration, worker: WorkerProcess) -> None:
        """Follow a worker that has its job, and conclude its migration."""
        try:
            last_word = await self._follow(migration, worker)
        except trio.Cancelled:
            worker.abandon()
            raise
        self._keeper.forget(migration.migration_id, migration.role)
        how = await worker.end()
        migration.worker_ended.set()
        if last_word is None:
            last_word = await self._settle(migration, how)
        self._ended(migration.migration_id)
        self._end(migration, last_word.get("info") or {}, last_word.get("error"))

    async def adopt_all(self, kept: Sequence[tuple[str, int]]) -> None:
        """Take over the workers of the daemon before this one, by their links' names and
        descriptors, which are ours from now on. Before anything is served.

        One that has ended without a word is not among the migrations afterwards: its journal tells.
        """
        async with trio.open_nursery() as nursery:
            for name, fd in kept:
                nursery.start_soon(self._adopt, name, fd)

    async def _adopt(self, name: str, fd: int) -> None:
        which = parse_name(name)
        worker = WorkerProcess.adopt(fd)
        if which is None:
            log.warning("systemd kept a descriptor %r that is no worker's", name)
            worker.abandon()
            return
        migration_id, role = which
        early: list[Packet] = []
        packet: Packet | None = None
        try:
            with trio.move_on_after(START_S) as limit:
                packet = await worker.identify(early.append)
            if limit.cancelled_caught:
                log.error("%s: its worker does not answer; left to itself", migration_id)
                worker.abandon()
                return
            migration = from_job(packet) if packet else None
        except (LinkLostError, ValueError, TypeError, LookupError, RefusedError):
            migration = None
        if migration is None:
            self._keeper.forget(migration_id, role)
            await worker.end()
            return
        with _logged(migration):
            log.info("%s: worker %d taken over", migration_id, worker.pid)
            self._migrations.add(migration)
            self._start_soon(self._go_on, migration, worker, early, packet)

    async def _go_on(
        self, migration: Migration, worker: WorkerProcess, early: list[Packet], packet: Packet
    ) -> None:
        """Of an adopted worker: take in what it has said, and see it through."""
        for each in early:
            if each.get("type") == "status":
                self._take(migration, each)
        self._announcer.status(migration)
        if packet["type"] == "finished":
            worker.unread = packet
        await self._see_through(migration, worker)

    async def _follow(self, migration: Migration, worker: WorkerProcess) -> Packet | None:
        """Talk to the worker until its last word. None when it ended without one."""
        try:
            migration.worker = worker
            migration.worker_started.set()
            if migration.cancel_asked:  # it was asked for before there was a worker to ask
                await worker.send({"type": "cancel"})
            while (packet := await worker.receive()).get("type") != "finished":
                self._take(migration, packet)
        except LinkLostError:
            return None
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            log.error("%s: the worker makes no sense: %s", migration.migration_id, error)
            return None
        return packet

    def _take(self, migration: Migration, packet: dict[str, Any]) -> None:
        if packet["type"] == "status":
            migration.update(packet["info"])
            self._announcer.status(migration)
            self._announcer.residency(migration)
        elif packet["type"] == "cancel-answer":
            migration.answer_cancel(bool(packet["accepted"]))
        elif packet["type"] == "set-answer":
            migration.answer_set(packet["error"])
        elif packet["type"] == "event" and packet["event"] != "MIGRATION":
            # MIGRATION is told from the status, once for each, and last when the worker has ended.
            self._announcer.event(migration, packet["event"], packet["data"])

    async def _settle(self, migration: Migration, how: str) -> Packet:
        """After a worker died. Returns the last word that it owed."""
        for role in ("source", "destination"):
            # Settling looks at both journals where both ends are on this host.
            other = self._migrations.by_id(migration.migration_id, role)
            if other is not None:
                await other.worker_ended.wait()
        state_dir = self._state_dir
        return await settle_after_death(self._hooks, state_dir, migration, how)

    def _end(self, migration: Migration, info: dict[str, Any], error: Packet | None) -> None:
        migration.finish(info, error)
        ended_s = time.time()
        self._history.add(record_of(migration.info, migration.started_s, ended_s))
        self.on_end(migration, max(0.0, ended_s - migration.started_s))
        if error is None:
            log.info("%s: %s", migration.migration_id, migration.status)
        else:
            log.warning("%s: %s: %s", migration.migration_id, migration.status, error["message"])
        self._announcer.status(migration)

    def _start_soon(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        if self._nursery is None:
            raise RuntimeError("the supervisor is not running")
        self._nursery.start_soon(task, *arguments)


def _logged(migration: Migration) -> AbstractContextManager[None]:
    return log_context(
        migration_id=migration.migration_id, guest=migration.guest.label, role=migration.role
    )


def _spawn_failed(error: OSError) -> MigrationFailedError:
    return MigrationFailedError(
        f"no worker process could be started: {error.strerror or error}",
        guest_state="untouched",
        advice="check the daemon's limits on processes and memory",
    )
