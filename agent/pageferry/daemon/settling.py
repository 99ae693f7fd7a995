"""What is told of a migration whose worker died, and which migrations are left over here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pageferry.control.info import FINAL_STATUSES
from pageferry.daemon.hooks import Hooks
from pageferry.daemon.migrations import Migration
from pageferry.migration.journal import (
    JournalError,
    JournalState,
    holder_of,
    journals,
    read_journal,
    unrecorded_path,
)
from pageferry.model.errors import PageferryError
from pageferry.model.phase import DestinationPhase, SourcePhase, is_over

log = logging.getLogger(__name__)

LastWord = dict[str, Any]
"""``info`` and ``error``, as a worker's last packet has them."""

STATUS_OF_PHASE: Final = {
    SourcePhase.COMPLETED.value: "completed",
    SourcePhase.CANCELLED.value: "cancelled",
    SourcePhase.FAILED.value: "failed",
    DestinationPhase.RUNNING.value: "completed",
    DestinationPhase.LOST.value: "failed",
    DestinationPhase.ABORTED.value: "failed",
}
"""MigrationStatus for each phase after which nothing follows."""
_UNKNOWN_STATE: Final = "not known: do not start it anywhere"


_LOOK: Final = "see the daemon's log, and try again"
_STATES: Final = {
    "source": "the source's: it never runs at the destination",
    "destination": "the source's: it never runs here",
}


def ending_of(state: JournalState) -> tuple[str, dict[str, str] | None]:
    """How a journal ended: its MigrationStatus, and what is told of it, as in a worker's last
    packet; None when it completed. For an end that no daemon saw."""
    notes = state.notes
    status = STATUS_OF_PHASE[state.phase]
    is_lost = bool(notes.get("lost")) or state.phase == DestinationPhase.LOST.value
    if status == "completed" and not is_lost:
        return status, None
    guest_state, advice = _STATES[state.role], _LOOK
    if is_lost:
        status = "failed"
        guest_state = "it ended with the destination's QEMU"
        advice = f"`pageferry recover {state.migration_id}` says where it stands"
    if status == "cancelled":
        advice = ""
    return status, {
        "kind": "unknown" if is_lost else status,
        "message": str(notes.get("reason") or "nobody wrote down why"),
        "guest-state": str(notes.get("guest-state") or guest_state),
        "advice": str(notes.get("advice") or advice),
    }


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
    if not settled or outcome.get("lost"):
        return _word(migration, "unknown", died, message, advice)
    status = STATUS_OF_PHASE.get(phase, "failed")
    if status == "completed":
        return {"info": {**migration.info, "status": status}, "error": None}
    return _word(migration, status, died, message, _LOOK)


def _word(migration: Migration, kind: str, message: str, state: str, advice: str) -> LastWord:
    status = kind if kind in FINAL_STATUSES else "failed"
    return {
        "info": {**migration.info, "status": status},
        "error": {"kind": kind, "message": message, "guest-state": state, "advice": advice},
    }


@dataclass(frozen=True, slots=True)
class OpenJournal:
    """A journal that is not at its end. ``qmp`` and ``guest`` are empty where it cannot be read."""

    migration_id: str
    role: str
    phase: str
    guest: str = ""
    qmp: str = ""


def open_journals(state_dir: Path, migration_id: str | None = None) -> list[OpenJournal]:
    """The journals on this host that are not at an end, of one migration or all; those that cannot
    be read are among them, since nobody knows what they leave open."""
    found = []
    for path in journals(state_dir):
        its_id, role = path.name.split(".")[:2]
        if migration_id not in (None, its_id):
            continue
        try:
            state = read_journal(path)
        except JournalError as error:
            log.error("%s", error)
            found.append(OpenJournal(its_id, role, "unreadable"))
            continue
        if state is None and unrecorded_path(state_dir, its_id).exists():
            found.append(OpenJournal(its_id, role, "empty"))
        if state is not None and not is_over(state.known_phase):
            guest, qmp = str(state.notes.get("guest", "")), str(state.notes.get("qmp", ""))
            found.append(OpenJournal(its_id, role, state.phase, guest, qmp))
    return found


def living_worker(state_dir: Path, migration_id: str) -> int | None:
    """The process that still works on this migration, perhaps started by a daemon before; 0 for
    one that has no number here. It holds the lock on its journal for as long as it can act."""
    for path in journals(state_dir):
        if path.name.split(".")[0] == migration_id:
            pid = holder_of(path)
            if pid is not None:
                return pid
    return None
