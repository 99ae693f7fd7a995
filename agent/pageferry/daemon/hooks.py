"""Where the daemon calls what other packages do, in one place that tests can replace.

Imported only when called: a daemon whose kernel part cannot be loaded still answers, and says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from pageferry.wire.messages import Query


async def _settle(state_dir: Path, migration_id: str) -> Any:
    recovery = importlib.import_module("pageferry.migration.recovery")
    return await recovery.settle(state_dir, migration_id)


async def _answer_query(stream: trio.SocketStream, query: Query, state_dir: Path) -> None:
    recovery = importlib.import_module("pageferry.migration.recovery")
    await recovery.answer_query(stream, query, state_dir)


async def _residency(qmp: Path) -> dict[str, Any]:
    inspection = importlib.import_module("pageferry.migration.inspection")
    summary: dict[str, Any] = await inspection.guest_residency(qmp)
    return summary


async def _probe() -> list[dict[str, Any]]:
    probes = importlib.import_module("pageferry.kernel.probes")
    results = await trio.to_thread.run_sync(probes.probe)
    return [
        {"name": result.name, "degree": str(result.degree), "reason": result.reason}
        for result in results
    ]


@dataclass(frozen=True, slots=True)
class Hooks:
    """The calls. ``settle`` brings a migration that its worker left behind to an end and tells the
    outcome; ``answer_query`` talks to a source that asks what became of a migration."""

    settle: Callable[[Path, str], Awaitable[Any]] = _settle
    answer_query: Callable[[trio.SocketStream, Query, Path], Awaitable[None]] = _answer_query
    residency: Callable[[Path], Awaitable[dict[str, Any]]] = _residency
    probe: Callable[[], Awaitable[list[dict[str, Any]]]] = _probe
