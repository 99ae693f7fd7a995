"""What to do about a migration whose worker is gone, by what its journal says.

The source owns the guest until ``commit`` is in its journal, so everything before that is taken
back. From ``commit`` on only the destination's journal can tell, and a destination that does not
give a final answer settles nothing. The destination runs the guest if and only if it has
``committed``.

Settling is idempotent: it may be cut off anywhere and done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pageferry.migration.journal import (
    Journal,
    JournalError,
    JournalState,
    journal_path,
    journals,
    read_journal,
)
from pageferry.migration.negotiation import query_destination
from pageferry.model.errors import OutcomeUnknownError, PageferryError, QemuError
from pageferry.model.phase import DestinationPhase, SourcePhase, is_over
from pageferry.qemu.monitor import open_monitor
from pageferry.qemu.switchover import DestinationHandover, SourceHandover, guest_status

NO_JOURNAL = "no-journal"
"""The phase that is reported for a migration of which there is no journal."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What was found and what was done. ``settled`` is False while a person or the peer is
    needed."""

    migration_id: str
    role: str
    guest: str
    phase: str
    settled: bool
    message: str

    def as_dict(self) -> dict[str, Any]:
        """For the control socket."""
        return {
            "migration-id": self.migration_id,
            "role": self.role,
            "guest": self.guest,
            "phase": self.phase,
            "settled": self.settled,
            "message": self.message,
        }


async def settle(state_dir: Path, migration_id: str) -> list[Settlement]:
    """Settle what this host's journals of *migration_id* leave open.

    Never to be called while a worker of that migration lives. Raises JournalError.
    """
    settled = []
    for role in ("source", "destination"):
        path = journal_path(state_dir, migration_id, role)
        if path.exists():
            settled.append(await _settle(path))
    return settled


async def settle_all(state_dir: Path) -> list[Settlement]:
    """Settle every journal that is open; those that make no sense are reported, not touched."""
    found = []
    for path in journals(state_dir):
        try:
            state = read_journal(path)
            if state is not None and not _over(state):
                found.append(await _settle(path))
        except JournalError as error:
            found.append(Settlement(path.stem, "", "", "unreadable", False, str(error)))
    return found


def journalled_phase(state_dir: Path, migration_id: str) -> tuple[str, str]:
    """The destination's phase of this migration and a word on it, for a source that asks."""
    try:
        path = journal_path(state_dir, migration_id, "destination")
        state = read_journal(path) if path.exists() else None
    except JournalError as error:
        return NO_JOURNAL, str(error)
    if state is None:
        return NO_JOURNAL, "this agent has no journal of that migration"
    return state.phase, str(state.notes.get("reason", ""))


def _over(state: JournalState) -> bool:
    phases = SourcePhase if state.role == "source" else DestinationPhase
    return is_over(phases(state.phase))


async def _settle(path: Path) -> Settlement:
    state = read_journal(path)
    if state is None:
        return Settlement(path.stem, "", "", "empty", True, "nothing had begun")
    if _over(state):
        return _settlement(state, state.phase, "it was over")
    journal = Journal.reopen(state)
    try:
        if state.role == "source":
            return await _settle_source(state, journal)
        return await _settle_destination(state, journal)
    except OutcomeUnknownError as error:
        return _settlement(state, state.phase, error.message, settled=False)
    except QemuError as error:
        return _settlement(state, state.phase, f"QEMU: {error.message}", settled=False)
    finally:
        journal.close()


async def _settle_source(state: JournalState, journal: Journal) -> Settlement:
    phase = SourcePhase(state.phase)
    if phase is SourcePhase.COMMIT:
        told = await _ask(state.notes, state.migration_id)
        if told == DestinationPhase.RUNNING:
            await journal.record(SourcePhase.COMPLETED, reason="the destination runs the guest")
            return _settlement(state, journal.phase, "the destination runs the guest")
        if told != DestinationPhase.ABORTED:
            raise OutcomeUnknownError(
                f"the destination says {told!r}: the guest stays paused here until it has an answer"
            )
    if phase in (SourcePhase.SWITCHOVER, SourcePhase.DEVICE, SourcePhase.COMMIT):
        resume = bool(state.notes.get("was-running", True))
        async with open_monitor(state.notes["qmp"]) as monitor:
            await SourceHandover(monitor).cancel(resume=resume)
    await journal.record(SourcePhase.FAILED, reason="its worker ended")
    return _settlement(state, journal.phase, "the guest is on the source, as before")


async def _settle_destination(state: JournalState, journal: Journal) -> Settlement:
    phase = DestinationPhase(state.phase)
    if phase is DestinationPhase.COMMITTED:
        return await _finish_commit(state, journal)
    await journal.record(DestinationPhase.ABORTED, reason="its worker ended")
    if phase in (DestinationPhase.DEVICE, DestinationPhase.LOADED):
        try:
            async with open_monitor(state.notes["qmp"]) as monitor:
                await DestinationHandover(monitor).discard()
        except QemuError as error:
            message = f"the guest will never run here; its QEMU could not be ended: {error.message}"
            return _settlement(state, journal.phase, message)
    return _settlement(state, journal.phase, "the guest will never run here")


async def _finish_commit(state: JournalState, journal: Journal) -> Settlement:
    """We were told to run it, and the source waits for our word."""
    async with open_monitor(state.notes["qmp"]) as monitor:
        if state.notes.get("guest-running", True) and await guest_status(monitor) != "running":
            await DestinationHandover(monitor).run()
    await journal.record(DestinationPhase.RUNNING)
    return _settlement(state, journal.phase, "the guest is here")


async def _ask(notes: Mapping[str, Any], migration_id: str) -> str:
    try:
        return await query_destination(notes["host"], int(notes["port"]), migration_id)
    except PageferryError as error:
        raise OutcomeUnknownError(
            f"the guest is paused here and may run on {notes['host']}: {error.message}",
            advice="run pageferry recover again when the other agent can be reached",
        ) from error


def _settlement(
    state: JournalState, phase: str | None, message: str, *, settled: bool = True
) -> Settlement:
    guest = str(state.notes.get("guest", ""))
    return Settlement(state.migration_id, state.role, guest, str(phase), settled, message)
