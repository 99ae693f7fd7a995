"""The commit: the one step after which the guest is the destination's.

What follows what is in `policy.ownership`; here it is done. ``commit`` is on disk before the
message leaves. When no answer is heard the source asks the destination's agent anew, and as long as
that has no final answer the guest stays paused here. It is never guessed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from pageferry.migration.handover import Handover
from pageferry.migration.job import SourceJob
from pageferry.migration.journal import Journal
from pageferry.migration.negotiation import query_destination
from pageferry.migration.owning import Recorder, SourceOwnership, told_notes
from pageferry.migration.peer import Peer
from pageferry.model.errors import (
    MigrationFailedError,
    OutcomeUnknownError,
    PageferryError,
)
from pageferry.policy.ownership import RULES, SourceEvent, SourceStep, told
from pageferry.wire.messages import Aborted, Commit, CommitFailed, Running

RUNNING_DEADLINE_S = 20.0
"""`cont` takes milliseconds; longer than this is a connection that is gone without telling."""

ASK_AGAIN_S = 30.0
"""How long the worker itself goes on asking before it leaves the question to its daemon and to
`pageferry recover`."""

ASK_INTERVAL_S = 1.0

LOOK_AT_QEMU = "look at the destination QEMU's own log"
MAKE_ROOM = "make room on the state directory's disk and try again"

Deed = Callable[[], Awaitable[SourceEvent]]


async def commit(
    job: SourceJob, journal: Journal, peer: Peer, handover: Handover, ownership: SourceOwnership
) -> None:
    """Hand the guest over. Returns when the destination runs it; call it shielded.

    Raises MigrationFailedError when the guest is back at the source, OutcomeUnknownError when
    nobody can say whether and where it runs.
    """
    committing = _Committing(job, journal, peer, handover)
    end = await ownership.follow(committing.deeds())
    if end is not SourceStep.GIVEN_AWAY:
        raise committing.failure(end)


class _Committing:
    """The deeds, and what they learned on the way."""

    def __init__(self, job: SourceJob, journal: Journal, peer: Peer, handover: Handover) -> None:
        self._job = job
        self._recorder = Recorder(journal)
        self._peer = peer
        self._handover = handover
        self._asked_since_s: float | None = None
        self._last_told = ""
        self._reason = ""
        self._advice = LOOK_AT_QEMU
        self._guest_state = ""

    def deeds(self) -> dict[SourceStep, Deed]:
        step = SourceStep
        return {
            step.RECORD_COMMIT: self._record_commit,
            step.SAY_COMMIT: self._say_commit,
            step.ASK: self._ask,
            step.TAKE_BACK: self._take_back,
            step.RECORD_KEPT: partial(self._record_failure, step.RECORD_KEPT, step.KEPT),
            step.RECORD_GIVEN_AWAY: self._record_given_away,
            step.RECORD_LOST: partial(self._record_failure, step.RECORD_LOST, step.LOST, lost=True),
        }

    async def _record_given_away(self) -> SourceEvent:
        return await self._recorder.source(RULES.source_records[SourceStep.RECORD_GIVEN_AWAY])

    async def _record_failure(
        self, step: SourceStep, end: SourceStep, **notes: bool
    ) -> SourceEvent:
        told_too = told_notes(self.failure(end))
        return await self._recorder.source(RULES.source_records[step], **told_too, **notes)

    async def _record_commit(self) -> SourceEvent:
        event = await self._recorder.source(RULES.source_records[SourceStep.RECORD_COMMIT])
        if event is SourceEvent.NOT_RECORDED:
            self._reason = f"the commit could not be journalled: {self._recorder.error}"
            self._advice = MAKE_ROOM
        return event

    async def _say_commit(self) -> SourceEvent:
        """Send Commit and wait for the answer."""
        with trio.move_on_after(RUNNING_DEADLINE_S):
            try:
                await self._peer.send(Commit())
                answer = await self._peer.receive()
            except PageferryError:
                return SourceEvent.HEARD_NOTHING
            if isinstance(answer, Running):
                self._handover.destination_runs()
                return SourceEvent.HEARD_RUNNING
            if isinstance(answer, CommitFailed):
                self._reason = f"the destination could not run the guest: {answer.message}"
                return SourceEvent.HEARD_NEVER
            if isinstance(answer, Aborted):
                self._destination_gave_up()
                return SourceEvent.HEARD_NEVER
        return SourceEvent.HEARD_NOTHING

    async def _ask(self) -> SourceEvent:
        now_s = trio.current_time()
        if self._asked_since_s is None:
            self._asked_since_s = now_s
        elif now_s - self._asked_since_s > ASK_AGAIN_S:
            return SourceEvent.ASKED_ENOUGH
        else:
            await trio.sleep(ASK_INTERVAL_S)
        self._last_told = ""
        with trio.move_on_after(ASK_AGAIN_S):
            try:
                self._last_told = await query_destination(
                    self._job.host,
                    self._job.port,
                    self._job.migration_id,
                    self._job.encryption,
                    self._job.check_receiver,
                    demand=True,
                )
            except PageferryError:
                return SourceEvent.TOLD_UNDECIDED
        event = told(self._last_told)
        if event is SourceEvent.TOLD_ABORTED:
            self._destination_gave_up()
        return event

    def _destination_gave_up(self) -> None:
        self._reason = "the destination gave the migration up"
        self._advice = f"see the log of pageferryd on {self._job.host}, and migrate again"

    async def _take_back(self) -> SourceEvent:
        self._guest_state = await self._handover.take_back()
        return self._handover.back

    def failure(self, end: SourceStep) -> PageferryError:
        """What to tell of an end that is not the one that was wanted."""
        if self._guest_state:
            advice = self._advice if self._recorder.error is None else MAKE_ROOM
            return MigrationFailedError(
                self._reason or "the destination could not run the guest",
                guest_state=self._guest_state,
                advice=advice,
            )
        recover = f"pageferry recover {self._job.migration_id}"
        if end is SourceStep.LOST:
            return OutcomeUnknownError(
                f"{self._job.host} took the guest over, and its QEMU ended there before it was"
                " known to run",
                guest_state="not running anywhere; paused on the source, as it was at the"
                " switchover",
                advice="if it can have written nothing there, `cont` on the source's QMP socket"
                " brings it back; else end the source's QEMU and start the guest anew",
            )
        return OutcomeUnknownError(
            "the commit was sent, but the destination has not said that the guest runs there"
            + (f" (it says {self._last_told!r})" if self._last_told else " and cannot be reached"),
            guest_state="paused on the source; it may be running on the destination",
            advice=f"pageferryd goes on asking; to see what it knows, or to ask at once: {recover}",
        )
