"""The commit: the one step after which the guest is the destination's.

``commit`` is on disk before the message leaves. What can follow: the destination says Running, and
the source is done. It says CommitFailed: it durably never will, and the source takes the guest
back. Or nothing is heard: then the source asks the destination's agent anew, and as long as that
has no final answer the guest stays paused here. It is never guessed.
"""

from __future__ import annotations

import trio

from pageferry.migration.handover import Handover
from pageferry.migration.job import SourceJob
from pageferry.migration.journal import Journal, JournalError
from pageferry.migration.negotiation import query_destination
from pageferry.migration.peer import Peer
from pageferry.model.errors import (
    MigrationFailedError,
    OutcomeUnknownError,
    PageferryError,
)
from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.wire.messages import Commit, CommitFailed, Message, Running

RUNNING_DEADLINE_S = 20.0
"""`cont` takes milliseconds; longer than this is a connection that is gone without telling."""

ASK_AGAIN_S = 30.0
"""How long the worker itself goes on asking before it leaves the question to `pageferry
recover`."""

ASK_INTERVAL_S = 1.0


async def commit(job: SourceJob, journal: Journal, peer: Peer, handover: Handover) -> None:
    """Hand the guest over. Returns when the destination runs it; call it shielded.

    Raises MigrationFailedError when the guest is back at the source, OutcomeUnknownError when
    nobody can say.
    """
    try:
        await journal.record(SourcePhase.COMMIT)
    except JournalError as error:
        # Not on disk, so not said: the guest is still ours.
        state = await handover.take_back()
        raise MigrationFailedError(
            f"the commit could not be journalled: {error}",
            guest_state=state,
            advice="make room on the state directory's disk and try again",
        ) from error
    answer = await _say_commit(peer)
    if isinstance(answer, Running):
        handover.destination_runs()
    elif isinstance(answer, CommitFailed):
        await _take_back(handover, answer.message)
    elif peer.source_may_resume:
        await _take_back(handover, "it gave the migration up")
    else:
        await _settle_by_asking(job, handover)
    await journal.record(SourcePhase.COMPLETED)


async def _say_commit(peer: Peer) -> Message | None:
    """Send Commit and wait for the answer; None when there is none."""
    with trio.move_on_after(RUNNING_DEADLINE_S):
        try:
            await peer.send(Commit())
            return await peer.receive()
        except PageferryError:
            return None
    return None


async def _settle_by_asking(job: SourceJob, handover: Handover) -> None:
    phase: str | None = None
    with trio.move_on_after(ASK_AGAIN_S):
        while True:
            try:
                phase = await query_destination(job.host, job.port, job.migration_id)
            except PageferryError:
                phase = None
            if phase == DestinationPhase.RUNNING.value:
                return
            if phase == DestinationPhase.ABORTED.value:
                await _take_back(handover, "the destination gave the migration up")
            await trio.sleep(ASK_INTERVAL_S)
    raise OutcomeUnknownError(
        "the commit was sent, but the destination has not said that the guest runs there"
        + (f" (its journal says {phase!r})" if phase else " and cannot be reached"),
        guest_state="paused on the source; it may be running on the destination",
        advice=f"when the destination's agent can be reached: pageferry recover {job.migration_id}",
    )


async def _take_back(handover: Handover, message: str) -> None:
    state = await handover.take_back()
    raise MigrationFailedError(
        f"the destination could not run the guest: {message}",
        guest_state=state,
        advice="look at the destination QEMU's own log",
    )
