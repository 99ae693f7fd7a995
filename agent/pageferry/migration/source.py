"""The source's side of one migration, from the first look to the commit.

Until Commit is sent the guest is the source's: any failure or cancel undoes what was done (the
guest runs on, tracking is gone, no capability stays set) and only then is the journal closed. From
the moment that ``commit`` is in the journal nothing here resumes the guest unless the destination
has said that it durably never will.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import trio

from pageferry.kernel.identity import ProcessIdentity
from pageferry.kernel.procfs import command_line
from pageferry.kernel.residency import ResidencyReader, choose_reader
from pageferry.migration.cancellation import Cancellation
from pageferry.migration.carry import Carry
from pageferry.migration.channel import Channel
from pageferry.migration.commit import commit
from pageferry.migration.estimating import Estimator, remember_costs, remembered_costs
from pageferry.migration.guest_ram import (
    CarriedBlock,
    guest_ram,
    refuse,
    refuse_other_users,
    refuse_tracked,
)
from pageferry.migration.handover import ENDED_WITH_QEMU, EXIT_S, Handover
from pageferry.migration.job import SourceJob
from pageferry.migration.journal import Journal
from pageferry.migration.negotiation import attach_channels, connect, negotiate
from pageferry.migration.outcome import explained
from pageferry.migration.owning import (
    Recorder,
    SourceOwnership,
    ended,
    qemu_identity,
    told_notes,
)
from pageferry.migration.packing import PackingSettings
from pageferry.migration.peer import Peer, open_peer
from pageferry.migration.progress import Progress
from pageferry.migration.sending import RamSender
from pageferry.migration.swap_pacing import calm_reading
from pageferry.migration.throttling import Throttle
from pageferry.migration.tuning import Tuning
from pageferry.migration.watch import check_blocks, watch_guest
from pageferry.migration.writes import GuestWrites
from pageferry.model.errors import (
    MigrationCancelledError,
    MigrationFailedError,
    PageferryError,
    PeerLostError,
    QemuError,
)
from pageferry.model.parameters import MigrationParameters
from pageferry.model.phase import SourcePhase
from pageferry.net.connecting import Route
from pageferry.policy.ownership import SourceEvent, SourceStep
from pageferry.policy.pacing import HostReading
from pageferry.qemu.look import GuestView, look
from pageferry.qemu.monitor import Monitor, open_monitor
from pageferry.qemu.switchover import SourceHandover, drain
from pageferry.wire.messages import Abort, Aborted

log = logging.getLogger(__name__)

ABORT_ANSWER_S = 10.0
"""How long to wait for the destination's word that it has given up; the guest runs on meanwhile."""

LAST_WORDS_S = 0.5
"""How long to wait, after a connection broke, for what the other side had said before."""


class SourceMigration:
    """One migration on its source. `run` once; `cancel` at any time, from the same trio thread."""

    def __init__(self, job: SourceJob, report_pass: Callable[[int], Awaitable[None]]) -> None:
        self.job = job
        self.progress = Progress(job.migration_id, job.guest, time.monotonic_ns())
        self.progress.destination = f"{job.host}:{job.port}"
        self._report_pass = report_pass
        self._cancellation = Cancellation()
        self._tuning = Tuning(job.parameters)

    def set_parameters(self, values: Mapping[str, Any]) -> None:
        """Change parameters from now on. Raises RefusedError, and then nothing has changed."""
        self._tuning.change(values)

    def cancel(self) -> bool:
        """Give up, unless the commit has begun: then nothing happens and the answer is False."""
        if not self._cancellation.request():
            return False
        self.progress.status = "cancelling"
        return True

    async def run(self) -> None:
        """Carry the guest over. Returns when the destination runs it.

        Raises RefusedError (nothing was touched), MigrationCancelledError or another PageferryError
        (the guest is the source's, as its ``guest_state`` says), or OutcomeUnknownError.
        """
        journal = Journal.create(self.job.state_dir, self.job.migration_id, "source")
        books = _Books(journal, self._cancellation, SourceOwnership())
        try:
            await journal.record(
                SourcePhase.LOOK,
                guest=self.job.guest,
                qmp=self.job.qmp,
                host=self.job.host,
                port=self.job.port,
                receivers=self.job.receivers,
            )
            with self._cancellation.scope:
                await self._migrate(journal, books)
            if self._cancellation.came_first:
                raise MigrationCancelledError("the migration was cancelled")
        except Exception as error:
            if books.ownership.step is SourceStep.GIVEN_AWAY:
                log.exception("the guest is the destination's, and something failed afterwards")
                self.progress.status = "completed"
                return
            reason = books.explain(error)
            await books.close(reason)
            raise reason from error
        finally:
            self.progress.finished_ns = time.monotonic_ns()
            journal.close()

    async def _migrate(self, journal: Journal, books: _Books) -> None:
        route = self.job.route()
        async with open_monitor(self.job.qmp) as monitor:
            calm = await trio.to_thread.run_sync(calm_reading, monitor.peer_pid)
            view = await look(monitor)
            refuse(view, "source")
            reader = await trio.to_thread.run_sync(choose_reader, self.job.parameters.residency_way)
            async with guest_ram(monitor.peer_pid, view, writable=False) as blocks:
                await trio.to_thread.run_sync(refuse_tracked, monitor.peer_pid, blocks)
                await trio.to_thread.run_sync(refuse_other_users, monitor.peer_pid, blocks)
                self.progress.total_bytes = sum(carried.block.length_bytes for carried in blocks)
                self.progress.way = reader.name
                stream = await connect(route, self.job)
                async with open_peer(stream) as peer:
                    departure = Departure(
                        job=self.job,
                        route=route,
                        journal=journal,
                        monitor=monitor,
                        view=view,
                        reader=reader,
                        blocks=blocks,
                        peer=peer,
                        progress=self.progress,
                        cancellation=self._cancellation,
                        books=books,
                        report_pass=self._report_pass,
                        tuning=self._tuning,
                        calm=calm,
                        identity=qemu_identity(monitor),
                    )
                    await departure.run()


class _Books:
    """How a migration ended, for the journal and for the operator."""

    def __init__(
        self, journal: Journal, cancellation: Cancellation, ownership: SourceOwnership
    ) -> None:
        self._journal = journal
        self._cancellation = cancellation
        self.ownership = ownership
        self.guest_state = ""
        self.cause: PageferryError | None = None
        """A better reason than the error that ended the migration."""

    def explain(self, error: Exception) -> PageferryError:
        """The one error to report. What broke because of a cancel is the cancel."""
        reason = self.cause or explained(error)
        if self._cancellation.came_first:
            reason = MigrationCancelledError("the migration was cancelled")
        if not reason.guest_state:
            reason.guest_state = self.guest_state or "on the source, as before"
        return reason

    async def close(self, reason: PageferryError) -> None:
        """Journal that the guest is kept, if it is. Else the journal stays open, to be settled."""
        if self.ownership.step is SourceStep.CARRY:
            self.ownership.on(SourceEvent.GIVE_UP)
        if self.ownership.step is not SourceStep.RECORD_KEPT:
            return
        cancelled = isinstance(reason, MigrationCancelledError)
        phase = SourcePhase.CANCELLED if cancelled else SourcePhase.FAILED
        with trio.CancelScope(shield=True):
            recorder = Recorder(self._journal)
            self.ownership.on(await recorder.source(phase, **told_notes(reason)))


@dataclass(slots=True)
class Departure:
    """The part of a migration for which both the monitor and the peer are there. `run` once."""

    job: SourceJob
    route: Route
    journal: Journal
    monitor: Monitor
    view: GuestView
    reader: ResidencyReader
    blocks: Sequence[CarriedBlock]
    peer: Peer
    progress: Progress
    cancellation: Cancellation
    books: _Books
    report_pass: Callable[[int], Awaitable[None]]
    tuning: Tuning
    calm: HostReading
    """The host's pressure before the migration began."""
    identity: ProcessIdentity
    """The guest's QEMU."""

    async def run(self) -> None:
        """Carry, hand over, commit; or undo."""
        handover = Handover(SourceHandover(self.monitor), self.monitor, self.peer, self.progress)
        async with AsyncExitStack() as stack:
            try:
                await self._carry_over(handover, stack)
                # From here on a cancel finds nothing to cancel any more.
                self.cancellation.begin_commit()
                self.books.ownership.on(SourceEvent.ARRIVED)
            except BaseException as error:
                with trio.CancelScope(shield=True):
                    await self._undo(handover, stack, error)
                raise
            with trio.CancelScope(shield=True):
                ownership = self.books.ownership
                await commit(self.job, self.journal, self.peer, handover, ownership)
        self.progress.status = "completed"
        self.progress.phase = "done"
        await self._compare_downtime(handover)

    async def _carry_over(self, handover: Handover, stack: AsyncExitStack) -> None:
        elapsed_s = (time.monotonic_ns() - self.progress.started_ns) / 1e9
        began = trio.current_time() - elapsed_s
        with trio.CancelScope(deadline=_deadline(began, self.tuning.parameters)) as limit:

            def move_deadline(parameters: MigrationParameters) -> None:
                limit.deadline = _deadline(began, parameters)

            self.tuning.on_change(move_deadline)
            ready = await negotiate(
                self.peer, self.job, self.view, self.blocks, command_line(self.monitor.peer_pid)
            )
            packing = PackingSettings.of(self.tuning.parameters)
            self.tuning.on_change(packing.change)
            channels = await attach_channels(self.peer, self.job, self.route, ready, packing)
            stack.callback(_close_channels, channels)
            async with trio.open_nursery() as watchers:
                watchers.start_soon(self.peer.raise_when_failed)
                watchers.start_soon(watch_guest, self.monitor)
                await self._move(handover, channels, stack, watchers)
                watchers.cancel_scope.cancel()
        if limit.cancelled_caught:
            raise MigrationFailedError(
                "the migration was not finished within its timeout of"
                f" {self.tuning.parameters.timeout_s:g} s",
                advice="raise the timeout, or try again when guest and hosts are less busy",
            )

    async def _move(
        self,
        handover: Handover,
        channels: list[Channel],
        stack: AsyncExitStack,
        watchers: trio.Nursery,
    ) -> None:
        self.progress.status = "active"
        self.progress.phase = "arm"
        await self.journal.record(SourcePhase.ARM, qemu=self.identity.as_dict())
        writes = await trio.to_thread.run_sync(
            lambda: GuestWrites.arm(
                self.monitor.peer_pid,
                self.blocks,
                self._drain,
                self.view.vcpu_threads,
                leave_mapped=True,
            )
        )
        stack.callback(writes.close)
        self.progress.drain_ns = writes.drain_ns
        throttle = Throttle(
            self.monitor,
            self.view.vcpu_threads,
            self.job.migration_id,
            self.job.state_dir,
            self.progress,
        )
        handover.throttle = throttle
        stack.push_async_callback(throttle.release)
        watchers.start_soon(throttle.run)
        carry = Carry(
            pid=self.monitor.peer_pid,
            blocks=self.blocks,
            sender=RamSender(self.blocks, channels, self.reader, self.progress),
            writes=writes,
            reader=self.reader,
            peer=self.peer,
            progress=self.progress,
            parameters=self.tuning.parameters,
            check_guest=self._check_guest,
            enter=self.journal.record,
            throttle=throttle,
            calm=self.calm,
            estimator=Estimator(remembered_costs(self.job.state_dir), time.monotonic_ns()),
        )
        self.tuning.on_change(carry.tune)
        await writes.drained()
        self.progress.setup_ns = time.monotonic_ns() - self.progress.started_ns
        await carry.first_pass()
        await self.journal.record(SourcePhase.ROUNDS)
        owed = await carry.rounds()
        self.books.ownership.on(SourceEvent.STOPPING)
        await handover.run(carry, owed, verify=self.tuning.parameters.verify)

    async def _compare_downtime(self, handover: Handover) -> None:
        """Tell how long the guest was stopped, and what was expected; learn from it."""
        progress, costs = self.progress, handover.costs
        if progress.downtime_ns is None or costs is None:
            return
        log.info(
            "downtime %.1f ms (expected %s ms, downtime-limit %d ms): last round %.1f ms for"
            " %d written pages, %d of them swapped; device state %.1f ms; commit %.1f ms",
            progress.downtime_ns / 1e6,
            progress.expected_downtime_ms,
            self.tuning.parameters.downtime_limit_ms,
            progress.switchover.last_round_ns / 1e6,
            progress.switchover.written_pages,
            progress.switchover.swapped_pages,
            progress.switchover.device_ns / 1e6,
            progress.switchover.commit_ns / 1e6,
        )
        await trio.to_thread.run_sync(remember_costs, self.job.state_dir, *costs)

    async def _drain(self) -> float:
        return await drain(self.monitor)

    async def _check_guest(self) -> None:
        await check_blocks(self.monitor, self.view)
        await self.report_pass(self.progress.round)

    async def _undo(self, handover: Handover, stack: AsyncExitStack, error: BaseException) -> None:
        """The guest runs on at the source; tracking and channels are gone; the peer is told."""
        ownership = self.books.ownership
        if handover.throttle is not None:
            await handover.throttle.release()
        if ownership.on(SourceEvent.GIVE_UP) is SourceStep.TAKE_BACK:
            self.books.guest_state = await handover.take_back()
            ownership.on(handover.back)
        await stack.pop_all().aclose()
        reason = explained(error) if isinstance(error, Exception) else None
        if isinstance(reason, PeerLostError):
            said = await self.peer.last_words(LAST_WORDS_S)
            if said is not None:
                self.books.cause = said
        await self._tell_abort(reason)
        is_gone = isinstance(reason, QemuError) and not reason.error_class
        if is_gone and await ended(self.identity, EXIT_S):
            self.books.guest_state = ENDED_WITH_QEMU

    async def _tell_abort(self, reason: PageferryError | None) -> None:
        """Best effort: a destination that does not hear it gives up by itself (silence)."""
        message = reason.message if reason else "the migration was cancelled"
        kind = reason.kind if reason else "cancelled"
        advice = reason.advice if reason else ""
        with trio.move_on_after(ABORT_ANSWER_S):
            try:
                await self.peer.send(Abort(kind=kind, message=message[:1000], advice=advice[:1000]))
                while not isinstance(await self.peer.receive(), Aborted):
                    continue
            except PageferryError:
                return


def _deadline(began: float, parameters: MigrationParameters) -> float:
    return math.inf if parameters.timeout_s is None else began + parameters.timeout_s


def _close_channels(channels: list[Channel]) -> None:
    for channel in channels:
        channel.shutdown()
        channel.close()
