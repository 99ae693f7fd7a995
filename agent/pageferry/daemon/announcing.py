"""Events about migrations, for every client of the control socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio

from pageferry.daemon.migrations import Migration

RESIDENCY_EVENT_S: Final = 1.0
"""Least time between two MIGRATION_RESIDENCY events of one migration."""

Emit = Callable[[str, dict[str, Any]], None]


class Announcer:
    """Tells what has changed since it was told last."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def event(self, migration: Migration, name: str, data: dict[str, Any]) -> None:
        """An event of the worker's own."""
        self._emit(name, {**data, **_identity(migration)})

    def status(self, migration: Migration) -> None:
        """MIGRATION, once for each status."""
        if migration.status != migration.announced:
            migration.announced = migration.status
            self._emit("MIGRATION", {"status": migration.status, **_identity(migration)})

    def residency(self, migration: Migration) -> None:
        """MIGRATION_RESIDENCY, when something was paged since and it is not too soon."""
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


def _identity(migration: Migration) -> dict[str, Any]:
    return {
        "migration-id": migration.migration_id,
        "guest": migration.guest.label,
        "role": migration.role,
    }
