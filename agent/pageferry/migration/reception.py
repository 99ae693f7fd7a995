"""Receiving a guest that was accepted: clear, place rounds, load devices, commit, or give it all
up."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import trio

from pageferry.kernel.residency import ResidencyReader
from pageferry.migration.guest_ram import CarriedBlock
from pageferry.migration.inflow import Inflow
from pageferry.migration.job import DestinationJob
from pageferry.migration.journal import Journal, JournalError
from pageferry.migration.outcome import explained
from pageferry.migration.peer import Peer
from pageferry.migration.progress import Progress
from pageferry.migration.receiving import RamReceiver
from pageferry.migration.relay import DeviceRelay
from pageferry.migration.stoppable import run_stoppable
from pageferry.migration.verify import ALGORITHM, ram_digests
from pageferry.migration.watch import watch_waiting_qemu
from pageferry.model.errors import (
    MigrationFailedError,
    OutcomeUnknownError,
    PageferryError,
    QemuError,
    RemoteProtocolError,
)
from pageferry.model.phase import DestinationPhase
from pageferry.qemu.monitor import Monitor
from pageferry.qemu.switchover import DestinationHandover
from pageferry.wire.messages import (
    Abort,
    Aborted,
    Commit,
    CommitFailed,
    Describe,
    DeviceLoaded,
    DeviceReady,
    Digest,
    Message,
    PrepareDevice,
    Ready,
    RoundAck,
    RoundEnd,
    Running,
    Started,
    Verify,
)

MAX_CHANNELS = 16
"""Data connections that this side agrees to: each costs a thread."""

ATTACH_TIMEOUT_S = 30.0

DEVICE_DEADLINE_S = 60.0
"""For QEMU to load its device state once it comes."""

GOODBYE_S = 5.0
"""How long to leave the connection open for the source to read the last word."""


@dataclass(slots=True)
class Reception:
    """One accepted guest. `run` once."""

    job: DestinationJob
    described: Describe
    journal: Journal
    monitor: Monitor
    peer: Peer
    blocks: Sequence[CarriedBlock]
    reader: ResidencyReader
    progress: Progress
    announce: Callable[[Inflow], None]
    begin_commit: Callable[[], None]
    _incoming: bool = False
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def run(self) -> None:
        """Returns when the guest is here for good; raises when it is not, having given it up."""
        receiver = RamReceiver(self.blocks, self.reader, self.progress, self._channels)
        qemu = DestinationHandover(self.monitor)
        try:
            await self.journal.record(
                DestinationPhase.READY,
                guest=self.job.guest,
                qmp=self.job.qmp,
                **{"guest-running": self.described.guest_running},
            )
            async with self._stack:
                await self._take_in(receiver, qemu)
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await self._give_up(receiver, qemu, error)
            raise
        with trio.CancelScope(shield=True):
            await self._commit(qemu)

    @property
    def _channels(self) -> int:
        return min(self.described.channels, MAX_CHANNELS)

    async def _take_in(self, receiver: RamReceiver, qemu: DestinationHandover) -> None:
        """Everything up to Commit's arrival."""
        self.progress.status = "active"
        self.progress.total_bytes = sum(carried.block.length_bytes for carried in self.blocks)
        await self.journal.record(DestinationPhase.RECEIVING)
        await trio.to_thread.run_sync(receiver.clear)
        token = secrets.token_bytes(32)
        inflow = Inflow(receiver, self._channels, token)
        self._stack.callback(inflow.close)
        self.announce(inflow)
        await self.peer.send(Ready(token=token, channels=self._channels))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.peer.raise_when_failed)
            nursery.start_soon(watch_waiting_qemu, self.monitor)
            await inflow.wait_attached(ATTACH_TIMEOUT_S)
            nursery.start_soon(inflow.serve_all)
            await self.peer.send(Started())
            await self._follow(inflow, qemu, nursery)
            self.begin_commit()
            nursery.cancel_scope.cancel()

    async def _follow(
        self, inflow: Inflow, qemu: DestinationHandover, nursery: trio.Nursery
    ) -> None:
        """Do as the source says until it says Commit."""
        while True:
            message = await self.peer.receive()
            match message:
                case RoundEnd():
                    await self._acknowledge(inflow, message)
                case PrepareDevice():
                    await self._prepare_device(qemu, nursery)
                case Verify():
                    await self._digest(message)
                case Commit():
                    return
                case _:
                    raise _unexpected(message)

    async def _acknowledge(self, inflow: Inflow, end: RoundEnd) -> None:
        self.progress.round = end.round
        kept = await inflow.placed(end)
        await self.peer.send(
            RoundAck(
                round=end.round,
                placed_pages=self.progress.normal_pages,
                zero_pages=self.progress.zero_pages,
                paged_out_pages=self.progress.paged_out_pages,
                kept_pages=kept,
            )
        )

    async def _prepare_device(self, qemu: DestinationHandover, nursery: trio.Nursery) -> None:
        await self.journal.record(DestinationPhase.DEVICE)
        relay = DeviceRelay(self.peer.send)
        self._stack.callback(relay.close)
        self.peer.device_sink = relay.deliver
        self._incoming = True
        await qemu.prepare(relay.qemu_fd)
        relay.release_qemu_end()
        await self.peer.send(DeviceReady())
        nursery.start_soon(relay.pump)
        nursery.start_soon(self._load, qemu)

    async def _load(self, qemu: DestinationHandover) -> None:
        await qemu.until_completed(None)
        await self.journal.record(DestinationPhase.LOADED)
        await self.peer.send(DeviceLoaded())

    async def _digest(self, request: Verify) -> None:
        if request.algorithm != ALGORITHM:
            raise RemoteProtocolError(f"the source wants digests by {request.algorithm}")
        stop = trio.Event()

        def digests() -> dict[str, str]:
            return ram_digests(self.blocks, self.reader, stop.is_set)

        await self.peer.send(Digest(digests=await run_stoppable(digests, stop.set)))

    async def _commit(self, qemu: DestinationHandover) -> None:
        """The source has committed: run the guest, or make sure that it never runs here."""
        await self._record_committed()
        status = "paused"
        if self.described.guest_running:
            try:
                await qemu.run()
                status = "running"
            except QemuError as error:
                await self._refuse_commit(qemu, error)
        await self.journal.record(DestinationPhase.RUNNING)
        self.progress.status = "completed"
        self.progress.phase = "done"
        await self._last_word(Running(status=status))

    async def _record_committed(self) -> None:
        """Without this record the guest must not run: a restart could not tell that it may."""
        try:
            await self.journal.record(DestinationPhase.COMMITTED)
        except JournalError as error:
            # `aborted` cannot be written either, so no promise can be given. The source asks.
            raise OutcomeUnknownError(
                f"the commit could not be journalled: {error}",
                guest_state="paused on the destination and on the source",
                advice=f"make room, then run pageferry recover {self.job.migration_id}",
            ) from error

    async def _refuse_commit(self, qemu: DestinationHandover, error: QemuError) -> None:
        try:
            await qemu.discard()
        except QemuError as still:
            raise OutcomeUnknownError(
                f"QEMU neither runs the guest nor ends: {error.message}; {still.message}",
                guest_state="unknown on the destination, paused on the source",
                advice=f"end this QEMU, then run pageferry recover {self.job.migration_id}",
            ) from error
        await self.journal.record(DestinationPhase.ABORTED, reason=error.message)
        await self._last_word(CommitFailed(message=error.message))
        raise MigrationFailedError(
            f"QEMU did not run the guest: {error.message}", guest_state="with its source"
        ) from error

    async def _give_up(
        self, receiver: RamReceiver, qemu: DestinationHandover, error: BaseException
    ) -> None:
        """Make durable that the guest never runs here, then say so."""
        reason = explained(error).message if isinstance(error, Exception) else "cancelled"
        await self._say(Abort(kind="aborted", message=reason[:1000], advice=""))
        try:
            await self.journal.record(DestinationPhase.ABORTED, reason=reason)
        except JournalError:
            # Not durable, so it is not promised: the source, which has not committed, resumes
            # anyway.
            return
        await self._dispose(receiver, qemu)
        await self._last_word(Aborted())

    async def _dispose(self, receiver: RamReceiver, qemu: DestinationHandover) -> None:
        """A QEMU that has begun to load is of no use and must not linger; one that still waits for
        its guest can take the next one, and gives its memory back until then."""
        try:
            if self._incoming:
                await qemu.discard()
            else:
                await trio.to_thread.run_sync(receiver.clear)
        except (QemuError, OSError):
            return

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


def _unexpected(message: Message) -> PageferryError:
    return RemoteProtocolError(f"the source said {message.name}, which does not belong here")
