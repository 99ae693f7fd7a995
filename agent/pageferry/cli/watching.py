"""Following one migration to its end."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import trio

from pageferry.control.client import ControlClient
from pageferry.control.info import Event, MigrationInfo

POLL_INTERVAL_S: Final = 0.25
"""As often as workers report; a person sees no more, and a query costs the daemon 0.1 ms."""


LEAST_BEGINNING: Final = 6
"""Characters of an ID that are enough to mean it, when no other begins with them."""


HISTORY_LIMIT: Final = 1000
"""All that the daemon remembers."""

_ID_BEGINNING: Final = re.compile(rf"[0-9a-f]{{{LEAST_BEGINNING},64}}")


async def reports(
    client: ControlClient, migration_id: str, events: trio.MemoryReceiveChannel[Event]
) -> AsyncGenerator[MigrationInfo | Event, None]:
    """What happens in a migration: a MigrationInfo now and then, with its events between.

    The last one is final. Raises CommandError and DaemonUnreachableError as the client does. Close
    it (aclosing) when leaving early.
    """
    while True:
        info = await client.query_migrate(migration_id=migration_id)
        yield info
        if info.is_final:
            return
        deadline = trio.current_time() + POLL_INTERVAL_S
        while (event := await _next_event(events, deadline)) is not None:
            if event.data.get("migration-id") == migration_id:
                yield event
                if event.name == "MIGRATION":
                    break  # the status has changed: ask at once


async def _next_event(events: trio.MemoryReceiveChannel[Event], deadline: float) -> Event | None:
    with trio.CancelScope(deadline=deadline):
        try:
            return await events.receive()
        except trio.EndOfChannel:
            return None  # the daemon has gone; the next query says so
    return None


async def until_final(client: ControlClient, migration_id: str) -> MigrationInfo:
    """Wait for the end of a migration. Raises as `reports` does."""
    with client.events() as events:
        async with aclosing(reports(client, migration_id, events)) as stream:
            async for report in stream:
                if isinstance(report, MigrationInfo) and report.is_final:
                    return report
    raise AssertionError("reports end with a final one")


async def find_migration(client: ControlClient, reference: str) -> MigrationInfo | None:
    """The migration that *reference* means: its ID, the last of a guest, or how its ID begins; also
    one that an earlier daemon saw the end of.

    None when there is none. Raises CommandError when there is not even such a guest.
    """
    migrations = await client.query_migrations()
    for info in migrations:
        if info.migration_id == reference:
            return info
    for info in reversed(migrations):
        if info.guest == reference:
            return info
    beginnings = [info for info in migrations if info.migration_id.startswith(reference)]
    if len(reference) >= LEAST_BEGINNING and len({each.migration_id for each in beginnings}) == 1:
        return beginnings[0]
    if _ID_BEGINNING.fullmatch(reference):
        past = {each.migration_id for each in await client.history(limit=HISTORY_LIMIT)}
        found = [each for each in past if each.startswith(reference)]
        if len(found) == 1:
            return await client.query_migrate(migration_id=found[0])
    info = await client.query_migrate(guest=reference)
    return info if info.migration_id else None
