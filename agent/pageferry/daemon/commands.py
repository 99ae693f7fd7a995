"""The commands of the control socket, named after QAPI's where they mean the same."""

from __future__ import annotations

import logging
from typing import Any, Final

from pageferry.control import declarations
from pageferry.control.errors import DEVICE_NOT_FOUND, CommandError
from pageferry.control.registry import Peer, Registry
from pageferry.control.server import Access
from pageferry.daemon.config import Config
from pageferry.daemon.doctor import examine
from pageferry.daemon.guests import Guest
from pageferry.daemon.hooks import Hooks
from pageferry.daemon.migrations import Migration
from pageferry.daemon.settling import open_journals
from pageferry.daemon.supervisor import Supervisor
from pageferry.migration.journal import JournalError
from pageferry.model.gone import DestinationGone
from pageferry.model.parameters import KEYS
from pageferry.net.address import Address, parse_address

log = logging.getLogger(__name__)

HISTORY_LIMIT: Final = 100
"""Records in an answer unless the client says otherwise: about 200 KiB."""

DEFAULT_SAMPLE_S: Final = 2.0
MIN_SAMPLE_S: Final = 0.2
MAX_SAMPLE_S: Final = 60.0

MAX_CELLS: Final = 1 << 16
"""Cells of a residency map: a picture of 256 by 256, at most some 800 KiB of JSON a block."""

Arguments = dict[str, Any]


def parse_uri(uri: str) -> Address:
    """``HOST[:PORT]``, also with QEMU's ``tcp:`` in front. Raises RefusedError."""
    return parse_address(uri.removeprefix("tcp:"))


class Commands:
    """Their implementation. Everything is checked before anything is done."""

    def __init__(
        self, config: Config, supervisor: Supervisor, hooks: Hooks, may_change: Access
    ) -> None:
        self._config = config
        self._supervisor = supervisor
        self._hooks = hooks
        self._may_change = may_change

    def register(self, registry: Registry) -> None:
        """Add them to *registry*."""
        registry.events = declarations.EVENTS
        for declaration, handler in (
            (declarations.QUERY_STATUS, self._query_status),
            (declarations.QUERY_GUESTS, self._query_guests),
            (declarations.MIGRATE, self._migrate),
            (declarations.MIGRATE_CANCEL, self._migrate_cancel),
            (declarations.QUERY_MIGRATE, self._query_migrate),
            (declarations.QUERY_MIGRATIONS, self._query_migrations),
            (declarations.QUERY_MIGRATE_HISTORY, self._query_history),
            (declarations.MIGRATE_SET_PARAMETERS, self._set_parameters),
            (declarations.QUERY_MIGRATE_PARAMETERS, self._query_parameters),
            (declarations.MIGRATE_RECOVER, self._recover),
            (declarations.QUERY_RESIDENCY, self._residency),
            (declarations.MIGRATE_ESTIMATE, self._estimate),
            (declarations.QUERY_DOCTOR, self._doctor),
        ):
            registry.add(declaration, handler)

    async def _query_status(self, _arguments: Arguments, peer: Peer) -> Arguments:
        stopping = self._supervisor.is_stopping
        return {
            "status": "stopping" if stopping else "running",
            "running": not stopping,
            "migrations": len(self._supervisor.migrations.running()),
            "listen": str(self._config.listen),
            "state-directory": str(self._config.state_directory),
            "access": "full" if self._may_change(peer) else "read-only",
        }

    async def _query_guests(self, _arguments: Arguments, _peer: Peer) -> list[Arguments]:
        return [self._guest_info(guest) for guest in self._supervisor.guests.all()]

    def _guest_info(self, guest: Guest) -> Arguments:
        info: Arguments = {
            "name": guest.name,
            "qmp": str(guest.qmp),
            "configured": guest.configured,
            "present": guest.qmp.is_socket(),
            "status": "none",
        }
        migration = self._supervisor.migrations.of_guest(guest)
        if migration is not None:
            info["migration-id"] = migration.migration_id
            info["status"] = migration.status
            info["role"] = migration.role
        return info

    async def _migrate(self, arguments: Arguments, peer: Peer) -> Arguments:
        parameters = self._supervisor.defaults.updated(arguments.get("parameters", {}))
        destination = parse_uri(arguments["uri"])
        guest = self._guest(arguments["guest"], peer)
        migration = await self._supervisor.migrate(
            guest, destination, arguments.get("destination-guest"), parameters
        )
        log.info("%s: asked for by %s", migration.migration_id, peer)
        return {"migration-id": migration.migration_id}

    async def _migrate_cancel(self, arguments: Arguments, peer: Peer) -> None:
        migration = self._chosen_or_error(arguments, peer) if arguments else None
        if migration is None:
            running = self._supervisor.migrations.running()
            if len(running) != 1:
                raise CommandError(
                    f"{len(running)} migrations are running; say which with migration-id or guest"
                )
            migration = running[0]
        log.info("%s: cancel asked for by %s", migration.migration_id, peer)
        await self._supervisor.cancel(migration)

    async def _query_migrate(self, arguments: Arguments, peer: Peer) -> Arguments:
        """Also of migrations that an earlier daemon saw the end of: who waited for one asks on."""
        migrations, history = self._supervisor.migrations, self._supervisor.history
        only_id = arguments.get("migration-id") if len(arguments) == 1 else None
        if only_id is not None and migrations.by_id(only_id) is None:
            over = history.last_state(only_id)
            if over is not None:
                return over
        migration = self._chosen(arguments, peer)
        if migration is None and "guest" in arguments:
            over = history.last_state_of_guest(self._guest(arguments["guest"], peer).label)
            return over or {}
        if migration is None:
            migration = next(reversed(list(migrations)), None)
        return {} if migration is None else migration.info

    async def _query_migrations(self, _arguments: Arguments, _peer: Peer) -> list[Arguments]:
        return [migration.info for migration in self._supervisor.migrations]

    async def _query_history(self, arguments: Arguments, _peer: Peer) -> list[Arguments]:
        limit = arguments.get("limit", HISTORY_LIMIT)
        if limit < 1:
            raise CommandError("Parameter 'limit' expects a number from 1")
        return self._supervisor.history.newest(arguments.get("guest"), limit)

    async def _set_parameters(self, arguments: Arguments, peer: Peer) -> None:
        values = {key: value for key, value in arguments.items() if key in KEYS.values()}
        if "migration-id" in arguments or "guest" in arguments:
            await self._supervisor.set_parameters(self._chosen_or_error(arguments, peer), values)
        else:
            self._supervisor.defaults = self._supervisor.defaults.updated(values)

    async def _query_parameters(self, arguments: Arguments, peer: Peer) -> Arguments:
        if arguments:
            return self._chosen_or_error(arguments, peer).parameters.to_dict()
        return self._supervisor.defaults.to_dict()

    async def _recover(self, arguments: Arguments, peer: Peer) -> Any:
        migration_id = arguments.get("migration-id")
        word = self._word(migration_id, arguments, peer)
        try:
            return await self._supervisor.recover(
                migration_id, only_plan=arguments.get("dry-run", False), word=word
            )
        except JournalError as error:
            raise CommandError(str(error)) from error

    def _word(
        self, migration_id: str | None, arguments: Arguments, peer: Peer
    ) -> DestinationGone | None:
        """The operator's word that the destination is gone, given with the guest's name."""
        name = arguments.get("destination-is-gone")
        if name is None:
            if "leave-paused" in arguments:
                raise CommandError("Parameter 'leave-paused' needs 'destination-is-gone'")
            return None
        if migration_id is None:
            raise CommandError("Parameter 'destination-is-gone' needs 'migration-id'")
        found = open_journals(self._config.state_directory, migration_id)
        journal = next((each for each in found if each.role == "source"), None)
        if journal is None:
            raise CommandError(f"this host has no open journal of a source of {migration_id[:64]}")
        if name != journal.guest:
            raise CommandError(
                f"Parameter 'destination-is-gone' expects the name of the migration's guest,"
                f" {journal.guest!r}"
            )
        return DestinationGone(peer.uid, peer.pid, not arguments.get("leave-paused", False))

    async def _residency(self, arguments: Arguments, peer: Peer) -> Arguments:
        cells = arguments.get("cells")
        if cells is not None and not 1 <= cells <= MAX_CELLS:
            raise CommandError(f"Parameter 'cells' expects a number from 1 to {MAX_CELLS}")
        guest = self._guest(arguments["guest"], peer)
        async with self._supervisor.looks.at(guest, "its residency is being looked at"):
            return await self._hooks.residency(guest.qmp, cells)

    async def _estimate(self, arguments: Arguments, peer: Peer) -> Arguments:
        sample_s = arguments.get("sample-time", DEFAULT_SAMPLE_S)
        if not MIN_SAMPLE_S <= sample_s <= MAX_SAMPLE_S:
            raise CommandError(
                f"Parameter 'sample-time' expects seconds from {MIN_SAMPLE_S} to {MAX_SAMPLE_S}"
            )
        for name in ("bandwidth", "swap-bandwidth"):
            if arguments.get(name) == 0:
                raise CommandError(f"Parameter '{name}' expects bytes per second above 0")
        parameters = self._supervisor.defaults.updated(arguments.get("parameters", {}))
        guest = self._guest(arguments["guest"], peer)
        async with self._supervisor.looks.at(guest, "its costs are being estimated"):
            return await self._hooks.estimate(
                {
                    "qmp": str(guest.qmp),
                    "sample-time": sample_s,
                    "bandwidth": arguments.get("bandwidth"),
                    "swap-bandwidth": arguments.get("swap-bandwidth"),
                    "parameters": parameters.to_dict(),
                }
            )

    async def _doctor(self, arguments: Arguments, peer: Peer) -> list[Arguments]:
        guest = destination = None
        if "guest" in arguments:
            guest = self._guest(arguments["guest"], peer)
        if "destination-guest" in arguments and not {"guest", "uri"} <= set(arguments):
            raise CommandError("Parameter 'destination-guest' needs 'guest' and 'uri'")
        if "uri" in arguments:
            if not self._may_change(peer):
                raise CommandError.denied(
                    f"a client (uid {peer.uid}) that may only read cannot have other hosts looked"
                    " at",
                    "leave uri out, or ask root",
                )
            destination = parse_uri(arguments["uri"])
        checks = await examine(
            self._supervisor,
            self._hooks,
            guest,
            destination,
            arguments.get("destination-guest"),
        )
        return [check.as_dict() for check in checks]

    def _guest(self, reference: str, peer: Peer) -> Guest:
        """The guest of that name; by the path of its socket only for who may do everything, since
        the daemon connects to whatever is named. Raises RefusedError, CommandError."""
        if reference.startswith("/") and not self._may_change(peer):
            raise CommandError.denied(
                f"a guest cannot be named by the path of a socket by a client (uid {peer.uid}) that"
                " may only read",
                "use its name, see query-guests",
            )
        return self._supervisor.guests.by_reference(reference)

    def _chosen(self, arguments: Arguments, peer: Peer) -> Migration | None:
        """The migration that the arguments name; None where a guest has none, or none is named."""
        if "migration-id" in arguments and "guest" in arguments:
            raise CommandError("give migration-id or guest, not both")
        if "migration-id" in arguments:
            return self._supervisor.find(arguments["migration-id"])
        if "guest" in arguments:
            guest = self._guest(arguments["guest"], peer)
            return self._supervisor.migrations.of_guest(guest)
        return None

    def _chosen_or_error(self, arguments: Arguments, peer: Peer) -> Migration:
        migration = self._chosen(arguments, peer)
        if migration is None:
            raise CommandError("this guest has not been migrated", DEVICE_NOT_FOUND)
        return migration
