"""Worker processes: one for each migration, started, watched and reaped.

Rules:

- One migration per guest at a time, and a guest is one by the real path of its QMP socket.
- A worker that died without its last word has left a guest that may be stopped: it is settled from
  its journal, and only after the process has provably ended.
- The daemon never kills a worker to get rid of a migration. It asks; the worker decides, since
  only the worker knows whether the commit has begun.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import trio

from pageferry.certificates.description import CertificateInfo
from pageferry.certificates.files import Side
from pageferry.control.errors import DEVICE_NOT_FOUND, CommandError
from pageferry.daemon.admission import check_same_certificate, check_sender, packet_of
from pageferry.daemon.config import Config
from pageferry.daemon.descriptors import FdOwner
from pageferry.daemon.guests import Guest, GuestDirectory
from pageferry.daemon.history import History, record_of
from pageferry.daemon.hooks import Hooks
from pageferry.daemon.leftovers import Leftovers
from pageferry.daemon.migrations import Migration, MigrationLog
from pageferry.daemon.settling import WORKER_VARIABLE, settle_after_death
from pageferry.daemon.worker_process import WORKER_COMMAND, WorkerProcess
from pageferry.migration.link import LinkLostError
from pageferry.model.errors import MigrationFailedError, RefusedError
from pageferry.model.parameters import MigrationParameters, check_changeable
from pageferry.net.address import Address
from pageferry.net.caller import Caller
from pageferry.net.encryption import Credentials
from pageferry.net.handing_over import SecondSession
from pageferry.wire.messages import Attach, Hello

log = logging.getLogger(__name__)

CANCEL_ANSWER_S = 5.0
"""How long the worker may take to say whether it cancels; its status tells later, too."""

SET_ANSWER_S = 5.0
"""How long the worker may take to say whether it takes new parameters; it does so at once."""

RESIDENCY_EVENT_S = 1.0
"""Least time between two MIGRATION_RESIDENCY events of one migration."""

Emit = Callable[[str, dict[str, Any]], None]
Packet = dict[str, Any]


class Supervisor:
    """Starts migrations and knows what becomes of them. `run` must be running for that."""

    def __init__(
        self,
        config: Config,
        emit: Emit,
        *,
        hooks: Hooks | None = None,
        worker_command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self.guests = GuestDirectory(config)
        self.migrations = MigrationLog()
        self.history = History(config.state_directory)
        self.defaults = config.defaults
        self._config = config
        self._emit = emit
        self._hooks = hooks or Hooks()
        self._worker_command = worker_command
        self.credentials = Credentials(config.encryption.directory, Side.CLIENT)
        self.leftovers = Leftovers(
            state_dir=config.state_directory,
            hooks=self._hooks,
            is_running=self._has_worker,
            emit=emit,
            settled=self._take_in_journals,
        )
        self._nursery: trio.Nursery | None = None
        self._stopping = False
        self._reserved: dict[str, str] = {}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch over workers until cancelled. Cancelling abandons them: call `shutdown` first."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._take_in_journals()
            self.leftovers.scan()
            nursery.start_soon(self.leftovers.run)
            task_status.started()
            await trio.sleep_forever()

    async def shutdown(self) -> None:
        """Take no more migrations, cancel the running ones, and wait until they have ended.

        One that has committed already is waited for as well: it ends by itself.
        """
        self._stopping = True
        for migration in self.migrations.running():
            log.info("%s: cancelled, since the daemon stops", migration.migration_id)
            await self._ask_to_cancel(migration)
        for migration in self.migrations.running():
            await migration.finished.wait()

    async def migrate(
        self,
        guest: Guest,
        destination: Address,
        destination_guest: str | None,
        parameters: MigrationParameters,
    ) -> Migration:
        """Start carrying *guest* away; returns at once.

        Raises RefusedError when it may not begin. Once this has returned the migration runs,
        whatever becomes of the caller.
        """
        self._check_certificates(destination)
        name = destination_guest or guest.name
        if not name:
            raise RefusedError(
                f"the guest at {guest.qmp} has no name here by which the destination could know it",
                advice="say what it is called there with destination-guest, or add it to [guests]",
            )
        migration = self._register(Migration(secrets.token_hex(16), "source", guest, parameters))
        migration.update({**migration.info, "destination": str(destination)})
        job = {
            **self._job(migration),
            "host": destination.host,
            "port": destination.port,
            "destination-guest": name,
            "parameters": parameters.to_dict(),
            "receivers": self._config.peers.receivers(migration.guest.label),
        }
        self._start(migration, job)
        return migration

    async def receive_guest(self, hello: Hello, caller: Caller) -> None:
        """Start the destination's side for the source that said *hello* on this connection.

        Hands the connection over. Raises RefusedError, and has then handed nothing over.
        """
        guest = self.guests.by_name(hello.guest)
        check_sender(self._config.peers, caller.certificate, guest)
        if self.migrations.by_id(hello.migration_id, "destination") is not None:
            raise RefusedError(
                f"migration {hello.migration_id} was tried here before",
                advice="start a new migration",
            )
        migration = self._register(
            Migration(hello.migration_id, "destination", guest, self.defaults)
        )
        if caller.certificate is not None:
            migration.fingerprint = caller.certificate.fingerprint
        job = {
            **self._job(migration),
            "hello": {
                "min-version": hello.min_version,
                "max-version": hello.max_version,
                "agent": hello.agent,
            },
            "tls": packet_of(caller.second_session),
        }
        self._start(migration, job, caller.hand_over())

    def check_attach(self, attach: Attach, certificate: CertificateInfo | None) -> None:
        """Raise RefusedError when no migration here awaits data connections from the holder of
        *certificate* (None: from a connection without TLS)."""
        migration = self.migrations.by_id(attach.migration_id, "destination")
        if migration is None or migration.worker is None:
            raise RefusedError(
                f"no migration {attach.migration_id} awaits data connections here",
                advice="see what became of it in this agent's log",
            )
        check_same_certificate(migration, certificate)

    async def attach(
        self, attach: Attach, fd: int, second_session: SecondSession | None = None
    ) -> None:
        """Hand a data connection to its worker, which checks the token. The caller keeps *fd*, and
        has called `check_attach`.

        Raises RefusedError when the migration has just ended.
        """
        migration = self.migrations.by_id(attach.migration_id, "destination")
        packet = {
            "type": "channel",
            "token": attach.token.hex(),
            "channel": attach.channel,
            "tls": packet_of(second_session),
        }
        try:
            if migration is None or migration.worker is None:
                raise LinkLostError("it has ended")
            await migration.worker.send(packet, [fd])
        except LinkLostError as error:
            raise RefusedError(
                f"migration {attach.migration_id} has just ended here",
                advice="see what became of it in this agent's log",
            ) from error

    async def cancel(self, migration: Migration) -> None:
        """Ask for *migration* to be cancelled. Its status tells when it has been.

        Raises CommandError when it is over, or has committed and can only go through.
        """
        if migration.finished.is_set():
            raise CommandError(f"migration {migration.migration_id} is over: {migration.status}")
        await self._ask_to_cancel(migration)
        with trio.move_on_after(CANCEL_ANSWER_S):
            if await migration.cancel_accepted() is False:
                raise CommandError(
                    f"migration {migration.migration_id} has been committed: the guest belongs to"
                    " the destination, and nothing is left to cancel"
                )

    async def set_parameters(self, migration: Migration, values: dict[str, Any]) -> None:
        """Change parameters of a running migration; they are in effect on return.

        Raises RefusedError or CommandError, and then nothing has changed.
        """
        check_changeable(values)
        parameters = migration.parameters.updated(values)
        with trio.move_on_after(SET_ANSWER_S):
            await migration.worker_started.wait()
        if migration.worker is None:
            raise CommandError(f"migration {migration.migration_id} is not running")
        if migration.role != "source":
            raise RefusedError(
                "a migration's parameters are its source's",
                guest_state="as before; the migration goes on",
                advice="set them on the host that the guest comes from",
            )
        async with migration.setting:
            answered = migration.await_set_answer()
            try:
                await migration.worker.send({"type": "set", "parameters": values})
            except LinkLostError:
                raise CommandError(f"migration {migration.migration_id} has just ended") from None
            with trio.move_on_after(SET_ANSWER_S):
                await answered.wait()
            if not migration.set_was_answered:
                raise CommandError(
                    f"the worker of migration {migration.migration_id} does not answer; whether the"
                    " parameters took effect is not known"
                )
            if migration.set_error is not None:
                raise CommandError(migration.set_error["message"], report=migration.set_error)
            migration.parameters = parameters

    async def recover(
        self, migration_id: str | None, *, only_plan: bool = False
    ) -> list[dict[str, Any]]:
        """Settle what dead workers left behind: one migration, or all that are open on this host.
        With *only_plan* nothing is done: what would be is told.

        Raises CommandError while a worker of this daemon still sees to *migration_id*, and
        JournalError when it is no ID.
        """
        if migration_id is not None and self._has_worker(migration_id):
            status = self.find(migration_id).status
            raise CommandError(f"migration {migration_id} still runs: {status}")
        told = await self.leftovers.settle(migration_id, only_plan=only_plan)
        await self._take_in_journals()
        if migration_id is not None and not told:
            raise CommandError(
                f"this host has no journal of migration {migration_id[:64]}", DEVICE_NOT_FOUND
            )
        return told

    def _has_worker(self, migration_id: str) -> bool:
        return any(each.migration_id == migration_id for each in self.migrations.running())

    async def _take_in_journals(self) -> None:
        await trio.to_thread.run_sync(self.history.take_in_journals, time.time_ns())

    @property
    def is_stopping(self) -> bool:
        """Whether no more migrations are taken."""
        return self._stopping

    @contextmanager
    def reserved(self, guest: Guest, why: str) -> Iterator[None]:
        """Keep migrations, and others who want it, off *guest*: its QMP socket takes one client.

        Raises RefusedError when it is in use.
        """
        self._check_free(guest)
        self._reserved[guest.key] = why
        try:
            yield
        finally:
            del self._reserved[guest.key]

    def _check_free(self, guest: Guest) -> None:
        for other in self.migrations.running():
            if other.guest.key == guest.key:
                raise RefusedError(
                    f"guest {guest.label} is in a migration already:"
                    f" {other.migration_id}, {other.status}, as its {other.role}",
                    advice="wait for it, or cancel it with `pageferry cancel`",
                )
        if guest.key in self._reserved:
            raise RefusedError(
                f"guest {guest.label} is in use: {self._reserved[guest.key]}",
                advice="try again in a moment",
            )

    def find(self, migration_id: str) -> Migration:
        """The migration of this ID. Raises CommandError."""
        migration = self.migrations.by_id(migration_id)
        if migration is None:
            raise CommandError(f"there is no migration {migration_id[:64]}", DEVICE_NOT_FOUND)
        return migration

    def _check_certificates(self, destination: Address) -> None:
        """Raise RefusedError now rather than when the worker has looked at the whole guest."""
        if self._config.encryption.is_needed(destination.host):
            self.credentials.valid_context()

    def _register(self, migration: Migration) -> Migration:
        if self._stopping:
            raise RefusedError("the daemon is stopping", advice="try again when it runs again")
        self._check_free(migration.guest)
        left_over = self.leftovers.of_guest(migration.guest.key)
        if left_over is not None:
            raise RefusedError(
                f"an earlier migration of guest {migration.guest.label} is not settled yet:"
                f" {left_over}",
                guest_state="as that migration left it",
                advice=f"see what it waits for: pageferry recover {left_over}",
            )
        self.migrations.add(migration)
        return migration

    def _job(self, migration: Migration) -> dict[str, Any]:
        return {
            "type": "job",
            "role": migration.role,
            "migration-id": migration.migration_id,
            "guest": migration.guest.label,
            "qmp": str(migration.guest.qmp),
            "state-dir": str(self._config.state_directory),
            "encryption": self._config.encryption.to_packet(),
        }

    def _start(self, migration: Migration, job: dict[str, Any], fd: int | None = None) -> None:
        if self._nursery is None:
            raise RuntimeError("the supervisor is not running")
        self._nursery.start_soon(self._watch, migration, job, FdOwner(fd))

    async def _watch(self, migration: Migration, job: dict[str, Any], fd: FdOwner) -> None:
        """The life of one worker. Never raises, but when cancelled."""
        self._announce(migration)
        environment = {WORKER_VARIABLE: migration.migration_id}
        with fd:
            try:
                worker = await WorkerProcess.spawn(self._worker_command, environment)
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
                last_word = await self._follow(migration, worker, job, fd)
            except trio.Cancelled:
                worker.abandon()
                raise
        how = await worker.end()
        migration.worker_ended.set()
        if last_word is None:
            last_word = await self._settle(migration, how)
        self.leftovers.note(migration.migration_id)
        self._end(migration, last_word.get("info") or {}, last_word.get("error"))

    async def _follow(
        self, migration: Migration, worker: WorkerProcess, job: dict[str, Any], fd: FdOwner
    ) -> dict[str, Any] | None:
        """Talk to the worker until its last word. None when it ended without one."""
        try:
            await worker.send(job, fd.numbers)
            fd.close()
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
            self._announce(migration)
            self._announce_residency(migration)
        elif packet["type"] == "cancel-answer":
            migration.answer_cancel(bool(packet["accepted"]))
        elif packet["type"] == "set-answer":
            migration.answer_set(packet["error"])
        elif packet["type"] == "event" and packet["event"] != "MIGRATION":
            # MIGRATION is told from the status, once for each, and last when the worker has ended.
            self._emit(packet["event"], {**packet["data"], **_identity(migration)})

    def _announce(self, migration: Migration) -> None:
        if migration.status != migration.announced:
            migration.announced = migration.status
            self._emit("MIGRATION", {"status": migration.status, **_identity(migration)})

    def _announce_residency(self, migration: Migration) -> None:
        counts = migration.info.get("residency") or {}
        told_at, told = migration.announced_residency
        now = trio.current_time()
        if counts == told or now - told_at < RESIDENCY_EVENT_S:
            return
        migration.announced_residency = (now, counts)
        self._emit(
            "MIGRATION_RESIDENCY",
            {
                "phase": migration.info.get("phase", ""),
                "elapsed": migration.info.get("total-time", 0),
                **{key: value for key, value in counts.items() if key != "way"},
                **_identity(migration),
            },
        )

    async def _settle(self, migration: Migration, how: str) -> Packet:
        """After a worker died. Returns the last word that it owed."""
        for role in ("source", "destination"):
            # Settling looks at both journals where both ends are on this host.
            other = self.migrations.by_id(migration.migration_id, role)
            if other is not None:
                await other.worker_ended.wait()
        state_dir = self._config.state_directory
        return await settle_after_death(self._hooks, state_dir, migration, how)

    def _end(self, migration: Migration, info: dict[str, Any], error: Packet | None) -> None:
        migration.finish(info, error)
        self.history.add(record_of(migration.info, migration.started_s, time.time()))
        if error is None:
            log.info("%s: %s", migration.migration_id, migration.status)
        else:
            log.warning("%s: %s: %s", migration.migration_id, migration.status, error["message"])
        self._announce(migration)

    async def _ask_to_cancel(self, migration: Migration) -> None:
        migration.cancel_asked = True
        if migration.worker is not None:
            try:
                await migration.worker.send({"type": "cancel"})
            except LinkLostError:
                log.debug("%s: ended before it was cancelled", migration.migration_id)


def _identity(migration: Migration) -> dict[str, Any]:
    return {
        "migration-id": migration.migration_id,
        "guest": migration.guest.label,
        "role": migration.role,
    }


def _spawn_failed(error: OSError) -> MigrationFailedError:
    return MigrationFailedError(
        f"no worker process could be started: {error.strerror or error}",
        guest_state="untouched",
        advice="check the daemon's limits on processes and memory",
    )
