"""An open journal without a worker, on either side: look, plan, settle.

Looking changes nothing: it asks the destination's agent where the journal says ``commit``, and
looks whether the QEMU that the journal is about still lives, and in what state. The plan is the
step of `policy.ownership` that follows.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from pageferry.migration.journal import Journal, JournalState
from pageferry.migration.journalled import (
    JournalledQemu,
    capabilities_noted,
    launched_noted,
    note,
    receivers_noted,
)
from pageferry.migration.negotiation import query_destination
from pageferry.migration.owning import (
    DestinationDeeds,
    DestinationOwnership,
    Recorder,
    SourceDeeds,
    SourceOwnership,
)
from pageferry.migration.throttling import undo_left_over
from pageferry.model.errors import PageferryError, QemuError
from pageferry.model.gone import DestinationGone
from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.net.encryption import Encryption
from pageferry.policy.ownership import (
    RULES,
    DestinationEvent,
    DestinationStep,
    SourceEvent,
    SourceStep,
    may_demand,
    told,
)
from pageferry.qemu.monitor import Monitor
from pageferry.qemu.switchover import (
    DestinationHandover,
    SourceHandover,
    migration_status,
)

log = logging.getLogger(__name__)

WAITING_FOR_CONT: Final = ("paused", "prelaunch")
"""RunStates of a loaded guest that `cont` lets run. In any other but ``inmigrate`` it has run."""


WORKER_ENDED: Final = "its worker ended"

ENDS: Final = {
    SourceStep.RECORD_KEPT: SourceStep.KEPT,
    SourceStep.RECORD_GIVEN_AWAY: SourceStep.GIVEN_AWAY,
    SourceStep.RECORD_LOST: SourceStep.LOST,
}
"""What follows each record with which the source's journal ends."""


class SourceLeftover:
    """The source's journal. `look` first, then `settle`. Raises UnfitNotesError when made."""

    def __init__(
        self,
        state: JournalState,
        journal: Journal,
        encryption: Encryption,
        word: DestinationGone | None = None,
    ) -> None:
        self._state = state
        self._word = word
        self._encryption = encryption
        self._recorder = Recorder(journal)
        self._phase = SourcePhase(state.phase)
        self._ownership = SourceOwnership(RULES.source_resumes_at[self._phase])
        self._qemu = JournalledQemu(state)
        self._resume = note(state, "was-running", bool, True)
        if word is not None and not word.resume:
            self._resume = False
        self._host, self._port = note(state, "host", str, ""), note(state, "port", int, 0)
        self._receivers = receivers_noted(state)
        self._answers = False
        self._is_to_demand = False
        self._stack: AsyncExitStack | None = None
        self._changed = capabilities_noted(state)
        self._trouble = ""
        self._stopped = ""
        """Why the guest may still be stopped by a throttle."""
        self.found = f"the journal says {state.phase}"
        self.plan = ""

    async def look(self, stack: AsyncExitStack) -> None:
        """Find out how things stand, and what is to be done. Changes nothing."""
        self._stack = stack
        if self._ownership.step is SourceStep.ASK:
            event, answer = await self._ask()
            self.found += f"; {answer}"
            if self._word is not None and not self._answers:
                self._ownership.on(SourceEvent.DECLARED_GONE)
            elif event is SourceEvent.TOLD_UNDECIDED:
                self._trouble = f"{answer}: the guest stays paused here until it has a final answer"
            else:
                self._ownership.on(event)
        if self._ownership.step in (SourceStep.TAKE_BACK, SourceStep.RECORD_RECLAIMED):
            self.found += f"; {await self._qemu.look(stack)}"
        self.plan = self._planned()

    @property
    def is_lost(self) -> bool:
        """Whether the guest ended with the destination's QEMU."""
        return self._ownership.step in (SourceStep.RECORD_LOST, SourceStep.LOST)

    async def settle(self) -> str:
        """Do it. Returns what came of it, in words."""
        if self._is_to_demand:
            await self._demand()
        if self._ownership.step is SourceStep.ASK:
            self._ownership.on(SourceEvent.ASKED_ENOUGH)
        end = await self._ownership.follow(self._deeds())
        if self._recorder.error is not None:
            return f"{self._outcome(end)}; {self._recorder.error}"
        return self._outcome(end)

    def _deeds(self) -> SourceDeeds:
        steps = (SourceStep.RECORD_KEPT, SourceStep.RECORD_GIVEN_AWAY, SourceStep.RECORD_LOST)
        return {
            SourceStep.TAKE_BACK: self._take_back,
            SourceStep.RECORD_RECLAIMED: self._record_reclaimed,
            **{step: partial(self._record, step) for step in steps},
        }

    async def _record(self, step: SourceStep) -> SourceEvent:
        if step is SourceStep.RECORD_KEPT and not await self._undo_throttle():
            return SourceEvent.NOT_RECORDED
        notes: dict[str, Any] = {"lost": True} if step is SourceStep.RECORD_LOST else {}
        notes["guest-state"] = self._outcome(ENDS[step])
        return await self._recorder.source(RULES.source_records[step], reason=WORKER_ENDED, **notes)

    async def _record_reclaimed(self) -> SourceEvent:
        """The word, on disk before anything is done by it, with who gave it."""
        assert self._word is not None
        return await self._recorder.source(
            RULES.source_records[SourceStep.RECORD_RECLAIMED],
            reason="an operator has declared the destination gone for good",
            word=self._word.as_dict(),
            **{"was-running": self._resume},
        )

    async def _undo_throttle(self) -> bool:
        """Its guard has done it, unless that was ended too. Whether nothing is left to undo: until
        then the journal stays open, so that it is tried again.
        """
        pid = None if self._qemu.is_gone else self._qemu.pid
        try:
            await undo_left_over(
                pid,
                str(self._state.notes.get("qmp", "")),
                self._state.path.parent,
                self._state.migration_id,
                # Slices end before the switchover; from there on taking back has seen to it.
                resume=RULES.source_resumes_at[self._phase] is SourceStep.RECORD_KEPT,
            )
        except QemuError as error:
            self._stopped = f"the guest is on the source, and may be stopped: {error.message}"
            return False
        return True

    async def _demand(self) -> None:
        """The destination has not written that it was told to run the guest: it is to give it
        up.
        """
        event, answer = await self._ask(demand=True)
        if event is SourceEvent.TOLD_UNDECIDED:
            self._trouble = f"{answer}, and does not give it up: the guest stays paused here"
            return
        self._ownership.on(event)
        if self._ownership.step is SourceStep.TAKE_BACK and self._stack is not None:
            await self._qemu.look(self._stack)

    async def _ask(self, *, demand: bool = False) -> tuple[SourceEvent, str]:
        host, port = self._host, self._port
        try:
            phase = await query_destination(
                host,
                port,
                self._state.migration_id,
                self._encryption,
                self._receivers.check,
                demand=demand,
            )
        except PageferryError as error:
            why = f"{error.message} ({error.advice})"
            return SourceEvent.TOLD_UNDECIDED, f"it may run on {host}: {why}"
        # One that has lost its state directory cannot be told from one that was set up anew.
        self._answers = phase != "no-journal"
        self._is_to_demand = may_demand(phase)
        if phase == "no-journal":
            answer = (
                f"the agent at {host}:{port} has no journal of it: its state directory was lost,"
                " or it is another host"
            )
        else:
            answer = f"the journal of the agent at {host}:{port} says {phase[:40]}"
        return told(phase), answer

    async def _take_back(self) -> SourceEvent:
        if self._qemu.is_gone:
            return SourceEvent.QEMU_GONE
        monitor = self._qemu.monitor
        if monitor is None:
            self._trouble = self._qemu.trouble
            return SourceEvent.QEMU_STUCK
        try:
            if self._phase is SourcePhase.SWITCHOVER and await self._has_completed(monitor):
                self._trouble = (
                    "QEMU has completed a migration, which ours did not come to: look where the"
                    " guest was migrated to, and do not continue it here"
                )
                return SourceEvent.QEMU_STUCK
            await SourceHandover(monitor, self._changed).cancel(resume=self._resume)
        except QemuError as error:
            self._trouble = f"the guest could not be brought back: {error.message}"
            gone = await self._qemu.has_ended()
            return SourceEvent.QEMU_GONE if gone else SourceEvent.QEMU_STUCK
        return SourceEvent.IS_BACK

    async def _has_completed(self, monitor: Monitor) -> bool:
        """Before ``device`` is journalled our migration waits at ``pre-switchover``.

        A QEMU into which its guest was migrated says ``completed`` ever after: of that.
        """
        is_away = self._qemu.status == "postmigrate"
        return is_away and await migration_status(monitor) == "completed"

    def _planned(self) -> str:
        step = self._ownership.step
        if step is SourceStep.TAKE_BACK and not self._qemu.is_gone:
            back = "let the guest run here again" if self._resume else "leave it paused, as it was"
            return f"cancel QEMU's migration and {back}"
        if step is SourceStep.RECORD_RECLAIMED:
            back = "let the guest run here again" if self._resume else "leave it paused here"
            return (
                f"by your word that {self._host} is gone for good, and its QEMU with it: {back},"
                " with the memory that it had at the switchover. If its host still runs, the guest"
                " may run twice and destroy its disks. If it ran there after the switchover and"
                " wrote to its disks, its memory here is too old for them: then leave it paused,"
                " and start it anew"
            )
        return {
            SourceStep.ASK: self._planned_demand() if self._is_to_demand else "",
            SourceStep.TAKE_BACK: "close the journal: the guest ended with its QEMU",
            SourceStep.RECORD_KEPT: "close the journal: the guest was not stopped for it",
            SourceStep.RECORD_GIVEN_AWAY: "close the journal: the guest is the destination's",
            SourceStep.RECORD_LOST: "close the journal: the guest was the destination's, and ended"
            " there with its QEMU",
        }[step]

    def _planned_demand(self) -> str:
        back = "let the guest run here again" if self._resume else "leave it paused, as it was"
        return (
            f"ask {self._host} to give the guest up, since it has not written that it was told to"
            f" run it; when it has promised that, {back}"
        )

    def _outcome(self, end: SourceStep) -> str:
        if end is SourceStep.KEPT:
            return self._stopped or self._kept()
        if end is SourceStep.GIVEN_AWAY:
            return "the destination runs the guest"
        if end is SourceStep.LOST:
            return (
                "the destination took the guest over, and its QEMU ended before it was known to"
                " run. The source's QEMU still holds it, paused, as it was at the switchover: if it"
                " can have written nothing there, `cont` brings it back; else start it anew"
            )
        return self._trouble

    def _kept(self) -> str:
        if self._qemu.is_gone:
            return "the guest ended with its QEMU; the destination never runs it"
        if self._phase is SourcePhase.RECLAIMED or self._word is not None:
            state = "runs" if self._resume else "is paused"
            return f"the guest is the source's again by an operator's word, and {state} here"
        return "the guest is on the source, as before"


class DestinationLeftover:
    """The destination's journal. `look` first, then `settle`. Raises UnfitNotesError when made."""

    def __init__(self, state: JournalState, journal: Journal) -> None:
        self._recorder = Recorder(journal)
        phase = DestinationPhase(state.phase)
        self._ownership = DestinationOwnership(RULES.destination_resumes_at[phase])
        self._qemu = JournalledQemu(state)
        self._runs = note(state, "guest-running", bool, True)
        self._launched = launched_noted(state)
        self._trouble = ""
        self.found = f"the journal says {state.phase}"
        self.plan = ""

    async def look(self, stack: AsyncExitStack) -> None:
        """Find out how things stand, and what is to be done. Changes nothing."""
        if self._ownership.step in (DestinationStep.RUN_AGAIN, DestinationStep.END_QEMU):
            self.found += f"; {await self._qemu.look(stack)}"
        self.plan = self._planned()

    @property
    def is_lost(self) -> bool:
        """Whether the guest ended with its QEMU here."""
        return self._ownership.step is DestinationStep.LOST

    async def settle(self) -> str:
        """Do it. Returns what came of it, in words."""
        end = await self._ownership.follow(self._deeds())
        if self._recorder.error is not None:
            return str(self._recorder.error)
        if end is DestinationStep.TAKEN:
            return "the guest is here"
        if end is DestinationStep.NEVER:
            if self._launched is not None and not await self._launched.end():
                log.warning("the QEMU that was started for it, process %s, stays", self._qemu.pid)
            return "the guest will never run here"
        if end is DestinationStep.LOST:
            return (
                "the guest had been handed over, and QEMU ended before it was known to run: it"
                " ended with its QEMU, like any guest"
            )
        return self._trouble

    def _deeds(self) -> DestinationDeeds:
        return {
            DestinationStep.RUN_AGAIN: self._run_again,
            DestinationStep.END_QEMU: self._end_qemu,
            **{step: partial(self._record, step) for step in RULES.destination_records},
        }

    async def _record(self, step: DestinationStep) -> DestinationEvent:
        phase = RULES.destination_records[step]
        return await self._recorder.destination(phase, reason=WORKER_ENDED)

    async def _run_again(self) -> DestinationEvent:
        if self._qemu.is_gone:
            return DestinationEvent.QEMU_GONE
        monitor, status = self._qemu.monitor, self._qemu.status
        if monitor is None or status == "inmigrate":
            self._trouble = self._qemu.trouble or "QEMU has no guest loaded, though it had"
            return DestinationEvent.NO_ANSWER
        if not self._runs or status not in WAITING_FOR_CONT:
            return DestinationEvent.RUNS
        try:
            await DestinationHandover(monitor).run()
        except QemuError as error:
            self._trouble = f"QEMU does not run the guest: {error.message}"
            if error.error_class:
                return DestinationEvent.REFUSED
            gone = await self._qemu.has_ended()
            return DestinationEvent.QEMU_GONE if gone else DestinationEvent.NO_ANSWER
        return DestinationEvent.RUNS

    async def _end_qemu(self) -> DestinationEvent:
        if self._qemu.is_gone:
            return DestinationEvent.QEMU_GONE
        monitor = self._qemu.monitor
        self._trouble = self._qemu.trouble
        if monitor is not None:
            try:
                await DestinationHandover(monitor).discard()
            except QemuError as error:
                self._trouble = f"QEMU does not end: {error.message}"
            if await self._qemu.has_ended():
                return DestinationEvent.QEMU_GONE
        return DestinationEvent.QEMU_STUCK

    def _planned(self) -> str:
        step = self._ownership.step
        if step is DestinationStep.RUN_AGAIN:
            if self._qemu.is_gone:
                return "close the journal: the guest ended with its QEMU"
            if not self._runs:
                return "close the journal: the guest is here, paused, as it was"
            if self._qemu.status in WAITING_FOR_CONT:
                return "let the guest run here: the source has handed it over"
            return "close the journal: the guest is here"
        if step is DestinationStep.END_QEMU and not self._qemu.is_gone:
            return "end this QEMU, so that the guest never runs here: it is the source's"
        and_end = " and the QEMU that was started for it ends" if self._launched else ""
        return f"close the journal: the guest never runs here{and_end}"
