"""Migrations: started, asked about, changed, cancelled. `workers` sees to the processes.

Rules:

- One migration per guest at a time, and a guest is one by the real path of its QMP socket.
- The daemon never kills a worker to get rid of a migration. It asks; the worker decides, since
  only the worker knows whether the commit has begun.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any

import trio

from pageferry.certificates.description import CertificateInfo
from pageferry.certificates.files import Side
from pageferry.control.errors import DEVICE_NOT_FOUND, CommandError
from pageferry.daemon.admission import check_same_certificate, check_sender, packet_of
from pageferry.daemon.announcing import Announcer, Emit
from pageferry.daemon.config import Config
from pageferry.daemon.guests import Guest, GuestDirectory
from pageferry.daemon.history import History
from pageferry.daemon.hooks import Hooks
from pageferry.daemon.keeping import NAME_PREFIX, Keeper
from pageferry.daemon.launches import in_service
from pageferry.daemon.leftovers import Leftovers
from pageferry.daemon.looks import Looks
from pageferry.daemon.migrations import Migration, MigrationLog
from pageferry.daemon.systemd import ServiceManager
from pageferry.daemon.worker_process import WORKER_COMMAND
from pageferry.daemon.workers import START_S, Workers
from pageferry.migration.link import LinkLostError
from pageferry.model.errors import RefusedError
from pageferry.model.gone import DestinationGone
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


class Supervisor:
    """Starts migrations and knows what becomes of them. `run` must be running for that."""

    def __init__(
        self,
        config: Config,
        emit: Emit,
        *,
        hooks: Hooks | None = None,
        worker_command: Sequence[str] = WORKER_COMMAND,
        keep_spare: bool = False,
        manager: ServiceManager | None = None,
    ) -> None:
        self.guests = GuestDirectory(config)
        self.migrations = MigrationLog()
        self.history = History(config.state_directory)
        self.defaults = config.defaults
        self.config = config
        self._manager = manager or ServiceManager()
        hooks = hooks or Hooks()
        self.credentials = Credentials(config.encryption.directory, Side.CLIENT)
        self.leftovers = Leftovers(
            state_dir=config.state_directory,
            hooks=hooks,
            is_running=self._has_worker,
            emit=emit,
            settled=self._take_in_journals,
        )
        self.workers = Workers(
            self.migrations,
            self.history,
            Announcer(emit),
            Keeper(self._manager),
            hooks=hooks,
            command=worker_command,
            keep_spare=keep_spare,
            state_dir=config.state_directory,
            ended=self.leftovers.note,
        )
        self.looks = Looks(self._check_free)
        self._stopping = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch over workers until cancelled, first over those that the daemon before this one had.

        Cancelling abandons them: call `shutdown` or `hand_over` first.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self.workers.run)
            await self.workers.adopt_all(self._manager.take(NAME_PREFIX))
            await self._take_in_journals()
            self.leftovers.scan()
            nursery.start_soon(self.leftovers.run)
            task_status.started()

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

    async def hand_over(self) -> None:
        """Take no more migrations, and leave the running ones to the next daemon.

        Where systemd does not keep their links they cancel by themselves, as after a crash.
        """
        self._stopping = True
        running = self.migrations.running()
        with trio.move_on_after(START_S):
            for migration in running:
                await migration.worker_started.wait()
        for migration in running:
            log.info("%s: goes on without this daemon", migration.migration_id)
        await trio.to_thread.run_sync(self._manager.barrier)

    def reconfigure(self, config: Config) -> None:
        """Go on with another configuration. Migrations that run keep the parameters they have."""
        self.config = config
        self.defaults = config.defaults
        self.guests = GuestDirectory(config)

    async def migrate(
        self,
        guest: Guest,
        destination: Address,
        destination_guest: str | None,
        parameters: MigrationParameters,
    ) -> Migration:
        """Start carrying *guest* away; returns at once, or when a look at it has given way.

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
        await self.looks.give_way(guest)
        migration = self._register(Migration(secrets.token_hex(16), "source", guest, parameters))
        migration.update({**migration.info, "destination": str(destination)})
        job = {
            **self._job(migration),
            "host": destination.host,
            "port": destination.port,
            "destination-guest": name,
            "parameters": parameters.to_dict(),
            "receivers": self.config.peers.receivers(migration.guest.label),
        }
        self.workers.start(migration, job)
        return migration

    async def receive_guest(self, hello: Hello, caller: Caller) -> None:
        """Start the destination's side for the source that said *hello* on this connection.

        Hands the connection over. Raises RefusedError, and has then handed nothing over.
        """
        guest = self.guests.by_name(hello.guest)
        check_sender(self.config.peers, caller.certificate, guest)
        await self.looks.give_way(guest)
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
        names = caller.certificate.names if caller.certificate is not None else ()
        launch = self.config.launch_for(guest.name, names)
        if launch is not None and self._manager.starts_guests:
            launch = in_service(launch)
        job = {
            **self._job(migration),
            "hello": {
                "min-version": hello.min_version,
                "max-version": hello.max_version,
                "agent": hello.agent,
            },
            "tls": packet_of(caller.second_session),
            "fingerprint": migration.fingerprint,
            "launch": launch.to_packet() if launch is not None else None,
        }
        self.workers.start(migration, job, caller.hand_over())

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
        self,
        migration_id: str | None,
        *,
        only_plan: bool = False,
        word: DestinationGone | None = None,
    ) -> list[dict[str, Any]]:
        """Settle what dead workers left behind: one migration, or all that are open on this host.
        With *only_plan* nothing is done: what would be is told. *word*: an operator's that the
        destination of the one named is gone for good.

        Raises CommandError while a worker of this daemon still sees to *migration_id*, and
        JournalError when it is no ID.
        """
        if migration_id is not None and self._has_worker(migration_id):
            status = self.find(migration_id).status
            raise CommandError(f"migration {migration_id} still runs: {status}")
        told = await self.leftovers.settle(migration_id, only_plan=only_plan, word=word)
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

    def _check_free(self, guest: Guest) -> None:
        for other in self.migrations.running():
            if other.guest.key == guest.key:
                raise RefusedError(
                    f"guest {guest.label} is in a migration already:"
                    f" {other.migration_id}, {other.status}, as its {other.role}",
                    advice="wait for it, or cancel it with `pageferry cancel`",
                )

    def find(self, migration_id: str) -> Migration:
        """The migration of this ID. Raises CommandError."""
        migration = self.migrations.by_id(migration_id)
        if migration is not None:
            return migration
        over = self.history.last_state(migration_id)
        if over is not None:
            raise CommandError(f"migration {migration_id} is over: {over['status']}")
        raise CommandError(f"there is no migration {migration_id[:64]}", DEVICE_NOT_FOUND)

    def _check_certificates(self, destination: Address) -> None:
        """Raise RefusedError now rather than when the worker has looked at the whole guest."""
        if self.config.encryption.is_needed(destination.host):
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
            "state-dir": str(self.config.state_directory),
            "encryption": self.config.encryption.to_packet(),
        }

    async def _ask_to_cancel(self, migration: Migration) -> None:
        migration.cancel_asked = True
        if migration.worker is not None:
            try:
                await migration.worker.send({"type": "cancel"})
            except LinkLostError:
                log.debug("%s: ended before it was cancelled", migration.migration_id)
