"""Asking the daemons of an evacuation: what becomes of migrations, what destinations have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

import trio

from evacuation_plan import Destination
from pageferry.control.client import ControlClient, DaemonUnreachableError, open_client
from pageferry.control.errors import CommandError
from pageferry.control.info import Check, HistoryEntry, MigrationInfo

RECONNECT_S: Final = 1.0

DAEMON_AWAY_S: Final = 120.0
"""How long a daemon may be away, restarting or being upgraded, before we give up on it."""

T = TypeVar("T")


class Daemon:
    """A daemon that may restart meanwhile: each question is asked on a connection of its own."""

    def __init__(self, path: Path, away_s: float = DAEMON_AWAY_S) -> None:
        self.path = path
        self._away_s = away_s

    async def ask(self, question: Callable[[ControlClient], Awaitable[T]]) -> T:
        """The answer. Only for questions that may be asked twice: when the daemon goes away, it is
        asked anew once it is back. Raises CommandError; DaemonUnreachableError at last."""
        deadline = trio.current_time() + self._away_s
        while True:
            try:
                async with open_client(self.path) as client:
                    return await question(client)
            except DaemonUnreachableError:
                if trio.current_time() > deadline:
                    raise
                await trio.sleep(RECONNECT_S)

    async def last_migration(self, guest: str) -> MigrationInfo | None:
        """The guest's last migration away from there, also one from before the daemon started."""

        async def find(client: ControlClient) -> MigrationInfo | None:
            info = await client.query_migrate(guest=guest)
            if info.migration_id and info.role == "source":
                return info
            past = await client.history(guest=guest)
            return next((info_of(each) for each in past if each.role == "source"), None)

        return await self.ask(find)

    async def wait(self, guest: str, migration_id: str) -> MigrationInfo | None:
        """The migration once it is over. None: the daemon knows nothing of it any more."""

        async def until_over(client: ControlClient) -> MigrationInfo | None:
            try:
                return await client.wait(migration_id)
            except CommandError:
                # A daemon that was started anew knows it from its history or from the journals.
                past = await client.history(guest=guest)
                mine = [each for each in past if each.migration_id == migration_id]
                return next((info_of(each) for each in mine if each.role == "source"), None)

        return await self.ask(until_over)


def info_of(entry: HistoryEntry) -> MigrationInfo:
    """A migration that only the history knows."""
    if entry.info is not None:
        return entry.info
    return MigrationInfo.from_dict({**entry.raw, "error-desc": entry.reason})


async def settled_phase(migration_id: str, client: ControlClient) -> str:
    """The last phase of a migration on its source; empty while it cannot be settled."""
    # What settling says is what it found. The second time it finds what the first has done.
    for _ in range(2):
        try:
            told = await client.recover(migration_id)
        except CommandError:
            return ""
    ours = [each for each in told if each.role == "source" and each.settled]
    return str(ours[0].raw.get("phase", "")) if ours else ""


async def look_at(specification: str) -> Destination:
    """Ask a destination, ``ADDRESS`` or ``ADDRESS=SOCKET``, what it has."""
    address, _, path = specification.partition("=")
    if not path:
        return Destination(address)
    try:
        async with open_client(Path(path)) as client:
            checks = await client.doctor()
            guests = frozenset(guest.name for guest in await client.query_guests())
    except (DaemonUnreachableError, CommandError) as error:
        return Destination(address, blocked=f"cannot be asked: {error}")
    wrong = [
        f"{check.name}: {check.found}"
        for check in checks
        if check.verdict == "blocked" and check.section in ("kernel", "host", "tls")
    ]
    return Destination(
        address,
        guests=guests,
        memory_bytes=_room(checks, "memory", "tmpfs"),
        swap_bytes=_room(checks, "swap"),
        blocked="; ".join(wrong),
    )


def _room(checks: Sequence[Check], *names: str) -> int | None:
    """The least that one of these has free; None where none tells."""
    found = [
        check.free_bytes
        for check in checks
        if check.section == "host" and check.name in names and check.free_bytes is not None
    ]
    return min(found, default=None)


async def reachable(daemon: Daemon, destination: Destination) -> Destination:
    """The same destination, blocked when this host's agent does not reach it."""
    if destination.blocked:
        return destination
    checks = await daemon.ask(lambda client: client.doctor(uri=destination.address))
    for check in checks:
        if check.section == "destination" and check.verdict == "blocked":
            return replace(destination, blocked=check.found)
    return destination
