"""The end of a reception: run the guest, or give it up for good, by `policy.ownership`.

What the source hears is true by then: Running after QEMU has let the guest run, Aborted and
CommitFailed after QEMU is unable to and the journal says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from pageferry.kernel.identity import ProcessIdentity
from pageferry.migration.job import DestinationJob
from pageferry.migration.journal import Journal
from pageferry.migration.outcome import explained
from pageferry.migration.owning import DestinationOwnership, Recorder, ended
from pageferry.migration.peer import Peer
from pageferry.migration.receiving import RamReceiver
from pageferry.model.errors import (
    MigrationFailedError,
    OutcomeUnknownError,
    PageferryError,
    QemuError,
)
from pageferry.policy.ownership import RULES, DestinationEvent, DestinationStep
from pageferry.qemu.monitor import Monitor
from pageferry.qemu.switchover import DestinationHandover, guest_status
from pageferry.wire.messages import (
    Abort,
    Aborted,
    CommitFailed,
    Describe,
    Message,
    Running,
)

GOODBYE_S = 5.0
"""How long to leave the connection open for the source to read the last word."""

EXIT_S = 10.0
"""How long QEMU may take from closing its monitor to having ended: it gives back a guest's RAM."""

CANCELLED_HERE = "cancelled, by an operator there or because its pageferryd ended"

Deed = Callable[[], Awaitable[DestinationEvent]]


@dataclass(slots=True)
class Arrival:
    """How it ends here. One of `commit` and `give_up`, once, shielded from cancellation."""

    job: DestinationJob
    described: Describe
    journal: Journal
    monitor: Monitor
    identity: ProcessIdentity
    peer: Peer
    ownership: DestinationOwnership
    _reason: str = ""
    _status: str = "paused"

    async def commit(self) -> None:
        """The source has committed. Returns when the guest is here, and runs if it ran.

        Raises MigrationFailedError when it will never run here, OutcomeUnknownError when that is
        not known, or it was lost with its QEMU.
        """
        recorder = Recorder(self.journal)
        end = await self.ownership.follow(self._deeds(recorder))
        if end is DestinationStep.TAKEN:
            await self._last_word(Running(status=self._status))
            return
        if end is DestinationStep.NEVER:
            await self._last_word(CommitFailed(message=self._reason[:1000]))
            raise MigrationFailedError(
                f"QEMU did not run the guest: {self._reason}", guest_state="with its source"
            )
        raise self._unknown(end, recorder)

    async def give_up(self, receiver: RamReceiver, error: BaseException) -> None:
        """Make it durable that the guest never runs here, then say so."""
        self._reason, advice = CANCELLED_HERE, ""
        if isinstance(error, Exception):
            reason = explained(error)
            self._reason, advice = reason.message, reason.advice
        await self._say(Abort(kind="aborted", message=self._reason[:1000], advice=advice[:1000]))
        is_empty = self.ownership.step is DestinationStep.RECEIVE
        if self.ownership.may_give_up:
            self.ownership.on(DestinationEvent.GIVE_UP)
        end = await self.ownership.follow(self._deeds(Recorder(self.journal)))
        if is_empty:
            await self._make_free(receiver)
        # Without the promise the source, which has not committed, goes on all the same; one that
        # has waits until the journal here has been settled.
        if end is DestinationStep.NEVER:
            await self._last_word(Aborted())

    def _deeds(self, recorder: Recorder) -> dict[DestinationStep, Deed]:
        deeds: dict[DestinationStep, Deed] = {
            step: partial(self._record, recorder, step) for step in RULES.destination_records
        }
        deeds[DestinationStep.RUN] = self._run
        deeds[DestinationStep.END_QEMU] = self._end_qemu
        return deeds

    async def _record(self, recorder: Recorder, step: DestinationStep) -> DestinationEvent:
        notes = {"reason": self._reason} if self._reason else {}
        return await recorder.destination(RULES.destination_records[step], **notes)

    async def _run(self) -> DestinationEvent:
        try:
            await guest_status(self.monitor)
        except QemuError as error:
            # Before `cont` was sent: it has never run.
            self._reason = error.message
            return DestinationEvent.REFUSED
        if not self.described.guest_running:
            return DestinationEvent.RUNS
        try:
            self._status = await DestinationHandover(self.monitor).run()
        except QemuError as error:
            self._reason = error.message
            if error.error_class:
                return DestinationEvent.REFUSED
            gone = await ended(self.identity, EXIT_S)
            return DestinationEvent.QEMU_GONE if gone else DestinationEvent.NO_ANSWER
        return DestinationEvent.RUNS

    async def _end_qemu(self) -> DestinationEvent:
        """A QEMU that has begun to load is of no use, and must not linger where someone could
        continue it."""
        with contextlib.suppress(QemuError):
            await DestinationHandover(self.monitor).discard()
        gone = await ended(self.identity, EXIT_S)
        return DestinationEvent.QEMU_GONE if gone else DestinationEvent.QEMU_STUCK

    async def _make_free(self, receiver: RamReceiver) -> None:
        """A QEMU that still waits for its guest can take the next one, and gives its memory back
        until then."""
        try:
            await trio.to_thread.run_sync(receiver.clear)
        except OSError:
            return

    def _unknown(self, end: DestinationStep, recorder: Recorder) -> OutcomeUnknownError:
        recover = f"pageferry recover {self.job.migration_id}"
        if end is DestinationStep.LOST:
            return OutcomeUnknownError(
                f"QEMU ended while it was told to run the guest: {self._reason}",
                guest_state="gone with this QEMU; paused on the source, as it was at the"
                " switchover",
                advice="look at QEMU's log. If the guest can have written nothing here, `cont` on"
                " the source's QMP socket brings it back",
            )
        if recorder.error is not None:
            return OutcomeUnknownError(
                f"the commit could not be journalled: {recorder.error}",
                guest_state="paused on the destination and on the source",
                advice=f"make room; pageferryd then settles it, or {recover} does",
            )
        return OutcomeUnknownError(
            f"QEMU neither runs the guest nor ends: {self._reason}",
            guest_state="unknown on the destination, paused on the source",
            advice=f"see what this QEMU waits for, or end it; pageferryd then settles it, or"
            f" {recover} does",
        )

    async def _last_word(self, message: Message) -> None:
        """Say it and let the source read it before the connection ends."""
        await self._say(message)
        with trio.move_on_after(GOODBYE_S):
            try:
                await self.peer.raise_when_failed()
            except PageferryError:
                return

    async def _say(self, message: Message) -> None:
        with trio.move_on_after(GOODBYE_S):
            try:
                await self.peer.send(message)
            except PageferryError:
                return
