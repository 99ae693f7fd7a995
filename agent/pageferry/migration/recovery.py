"""What to do about a migration whose worker is gone: look, say what is planned, and do it.

What follows from a journal is in `policy.ownership`, and how it is done in `leftover`. Settling is
idempotent: it may be cut off anywhere and done again. It holds the journal's lock, so it never
works beside a worker, nor twice at once.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from pageferry.migration.journal import (
    ROLES,
    Journal,
    JournalBusyError,
    JournalError,
    JournalState,
    journal_path,
    read_journal,
    unrecorded_path,
)
from pageferry.migration.journalled import UnfitNotesError
from pageferry.migration.launched import end_unrecorded
from pageferry.migration.leftover import DestinationLeftover, SourceLeftover
from pageferry.model.gone import DestinationGone
from pageferry.model.phase import NO_JOURNAL, is_over, phase_of
from pageferry.net.encryption import Encryption

UNREADABLE: Final = "unreadable"
"""The phase that is reported where the journal is damaged, or cannot be read."""

OVER: Final = "it was over"

LEFT_ALONE: Final = (
    "It is left alone, since a guess could let the guest run twice: find out where the guest runs,"
    " then move this file away"
)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What was found, what is to be done about it, and what came of it.

    ``settled``: the journal is at its end. ``plan`` is what settling does, or would do; empty where
    there is nothing to do. ``lost``: the guest ended with the destination's QEMU.
    """

    migration_id: str
    role: str
    guest: str
    phase: str
    settled: bool
    message: str
    found: str = ""
    plan: str = ""
    lost: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For the control socket."""
        return {
            "migration-id": self.migration_id,
            "role": self.role,
            "guest": self.guest,
            "phase": self.phase,
            "settled": self.settled,
            "message": self.message,
            "found": self.found,
            "plan": self.plan,
            "lost": self.lost,
        }


async def settle(
    state_dir: Path,
    migration_id: str,
    encryption: Encryption,
    *,
    only_plan: bool = False,
    word: DestinationGone | None = None,
) -> list[Settlement]:
    """Settle what this host's journals of *migration_id* leave open; or, with *only_plan*, change
    nothing and say what that would do. *encryption* is for asking the destination's agent. *word*
    is an operator's that it is gone for good; it counts only as long as no agent there answers for
    the migration.

    A journal that somebody else works on, or that makes no sense, is reported and left alone.
    Raises JournalError on an ID that is none.
    """
    paths = [journal_path(state_dir, migration_id, role) for role in ROLES]
    return [
        await _settle(path, encryption, only_plan=only_plan, word=word)
        for path in paths
        if path.exists()
    ]


def journalled_phase(state_dir: Path, migration_id: str) -> tuple[str, str, str]:
    """The destination's phase of this migration, a word on it, and the guest, whose name is empty
    where the journal does not say; for a source that asks.

    What it says is on disk.
    """
    try:
        path = journal_path(state_dir, migration_id, "destination")
        state = read_journal(path, synced=True) if path.exists() else None
    except JournalError as error:
        return UNREADABLE, str(error), ""
    if state is None:
        return NO_JOURNAL, "this agent has no journal of that migration", ""
    notes = state.notes
    return state.phase, str(notes.get("reason", "")), str(notes.get("guest", ""))


async def _settle(
    path: Path, encryption: Encryption, *, only_plan: bool, word: DestinationGone | None
) -> Settlement:
    migration_id, role = path.name.split(".")[:2]
    bare = partial(Settlement, migration_id, role, "")
    try:
        journal, state = Journal.reopen(path)
    except JournalBusyError as error:
        return bare("busy", False, f"{error}; ask again later")
    except JournalError as error:
        return bare(UNREADABLE, False, f"{error}. {LEFT_ALONE}")
    try:
        if state is None:
            return await _settle_empty(path, only_plan=only_plan)
        if is_over(state.known_phase):
            where = state.notes.get("guest-state")
            return _settlement(state, state.phase, f"{OVER}: {where}" if where else OVER)
        return await _settle_open(state, journal, encryption, only_plan=only_plan, word=word)
    except UnfitNotesError as error:
        return bare(UNREADABLE, False, f"{error}. {LEFT_ALONE}")
    finally:
        journal.close()


async def _settle_empty(path: Path, *, only_plan: bool) -> Settlement:
    """A journal without a record: the worker may have died after it had started a QEMU."""
    migration_id, role = path.name.split(".")[:2]
    unrecorded = unrecorded_path(path.parent, migration_id)
    settled, message, plan = True, "nothing had begun", ""
    if role == "destination" and await trio.to_thread.run_sync(unrecorded.exists):
        plan = "end the QEMU that was started for it, and into which nothing came"
        if only_plan:
            settled, message = False, "a QEMU was started, and nothing else had begun"
        elif await end_unrecorded(unrecorded):
            message = "nothing had begun; the QEMU that was started for it has ended"
        else:
            settled, message = False, f"the QEMU of which {unrecorded} says does not end"
    return Settlement(migration_id, role, "", "empty", settled, message, plan=plan)


async def _settle_open(
    state: JournalState,
    journal: Journal,
    encryption: Encryption,
    *,
    only_plan: bool,
    word: DestinationGone | None,
) -> Settlement:
    leftover: SourceLeftover | DestinationLeftover
    if state.role == "source":
        leftover = SourceLeftover(state, journal, encryption, word)
    else:
        leftover = DestinationLeftover(state, journal)
        if not only_plan:
            # The journal says what was started.
            with contextlib.suppress(OSError):
                os.unlink(unrecorded_path(state.path.parent, state.migration_id))
    async with AsyncExitStack() as stack:
        await leftover.look(stack)
        message = leftover.found if only_plan else await leftover.settle()
        told = _settlement(
            state, str(journal.phase), message, found=leftover.found, plan=leftover.plan
        )
        return replace(told, lost=leftover.is_lost)


def _settlement(
    state: JournalState, phase: str, message: str, *, found: str = "", plan: str = ""
) -> Settlement:
    guest = str(state.notes.get("guest", ""))
    settled = is_over(phase_of(state.role, phase))
    return Settlement(
        state.migration_id, state.role, guest, phase, settled, message, found=found, plan=plan
    )
