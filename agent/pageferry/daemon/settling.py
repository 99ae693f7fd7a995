"""What is told of a migration whose worker died, and which migrations are left over here."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from pageferry.control.info import FINAL_STATUSES
from pageferry.daemon.hooks import Hooks
from pageferry.daemon.migrations import Migration
from pageferry.migration.journal import JournalError, journals, read_journal
from pageferry.model.errors import PageferryError
from pageferry.model.phase import DestinationPhase, SourcePhase, is_over

log = logging.getLogger(__name__)

LastWord = dict[str, Any]
"""``info`` and ``error``, as a worker's last packet has them."""

WORKER_VARIABLE: Final = "PAGEFERRY_MIGRATION_ID"
"""In each worker's environment, so that a daemon can find workers of the one before it."""

STATUS_OF_PHASE: Final = {
    SourcePhase.COMPLETED.value: "completed",
    SourcePhase.CANCELLED.value: "cancelled",
    SourcePhase.FAILED.value: "failed",
    DestinationPhase.RUNNING.value: "completed",
    DestinationPhase.ABORTED.value: "failed",
}
"""MigrationStatus for each phase after which nothing follows."""
_UNKNOWN_STATE: Final = "not known: do not start it anywhere"


async def settle_after_death(
    hooks: Hooks, state_dir: Path, migration: Migration, how: str
) -> LastWord:
    """Settle *migration*, whose worker ended (*how*) without its last word. Returns that word."""
    migration_id = migration.migration_id
    log.error("%s: the worker died (%s); settling", migration_id, how)
    died = f"the worker process died ({how})"
    advice = f"run `pageferry recover {migration_id}`, and see the daemon's log"
    try:
        outcomes = await hooks.settle(state_dir, migration_id)
        outcome = next((each for each in outcomes if each["role"] == migration.role), None)
        if outcome is None:
            return _word(migration, "failed", died, "untouched: nothing had begun", "try again")
        phase, settled, message = outcome["phase"], outcome["settled"], outcome["message"]
    except (PageferryError, JournalError) as error:
        return _word(migration, "unknown", f"{died}: {error}", _UNKNOWN_STATE, advice)
    except Exception:
        log.exception("%s: settling failed", migration_id)
        return _word(migration, "unknown", died, _UNKNOWN_STATE, advice)
    log.warning("%s: settled: %s", migration_id, message)
    if not settled:
        return _word(migration, "unknown", died, message, advice)
    status = STATUS_OF_PHASE.get(phase, "failed")
    if status == "completed":
        return {"info": {**migration.info, "status": status}, "error": None}
    return _word(migration, status, died, message, "see the daemon's log, and try again")


def _word(migration: Migration, kind: str, message: str, state: str, advice: str) -> LastWord:
    status = kind if kind in FINAL_STATUSES else "failed"
    return {
        "info": {**migration.info, "status": status},
        "error": {"kind": kind, "message": message, "guest-state": state, "advice": advice},
    }


def open_migrations(state_dir: Path) -> dict[str, str]:
    """The migrations whose journals on this host are not at an end: ID to phase."""
    found = {}
    for path in journals(state_dir):
        try:
            state = read_journal(path)
        except JournalError as error:
            log.error("%s", error)
            continue
        if state is None:
            continue
        phase: SourcePhase | DestinationPhase
        if state.role == "source":
            phase = SourcePhase(state.phase)
        else:
            phase = DestinationPhase(state.phase)
        if not is_over(phase):
            found[state.migration_id] = f"{state.role}: {phase.value}"
    return found


def living_worker(migration_id: str) -> int | None:
    """The process that still works on this migration, perhaps started by a daemon before."""
    wanted = f"{WORKER_VARIABLE}={migration_id}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                return int(entry.name)
        except OSError:  # it is gone, or not ours to look at
            continue
    return None


Settle = Callable[[Path, str], Awaitable[list[dict[str, Any]]]]


async def settle_open(
    settle: Settle, state_dir: Path, migration_ids: list[str]
) -> list[dict[str, Any]]:
    """Settle migrations that no process works on any more; others are told to be in good hands."""
    told: list[dict[str, Any]] = []
    for migration_id in migration_ids:
        pid = living_worker(migration_id)
        if pid is not None:
            told.append(
                {
                    "migration-id": migration_id,
                    "settled": False,
                    "message": f"worker process {pid} still sees to it; ask again later",
                }
            )
        else:
            told += await settle(state_dir, migration_id)
    return told
