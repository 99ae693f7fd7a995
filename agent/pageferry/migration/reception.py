"""Receiving a guest that was accepted: clear, place rounds, load devices, until Commit comes.

How it ends is in `arrival`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import trio

from pageferry.kernel.residency import ResidencyReader
from pageferry.migration.arrival import Arrival
from pageferry.migration.guest_ram import CarriedBlock
from pageferry.migration.inflow import Inflow
from pageferry.migration.job import DestinationJob
from pageferry.migration.journal import Journal, JournalError
from pageferry.migration.launching import Launching
from pageferry.migration.outcome import explained
from pageferry.migration.owning import DestinationOwnership, qemu_identity
from pageferry.migration.peer import Peer
from pageferry.migration.progress import Progress
from pageferry.migration.receiving import RamReceiver
from pageferry.migration.relay import DeviceRelay
from pageferry.migration.stoppable import run_stoppable
from pageferry.migration.verify import ALGORITHM, ram_digests
from pageferry.migration.watch import watch_waiting_qemu
from pageferry.model.errors import PageferryError, PeerLostError, RemoteProtocolError
from pageferry.model.phase import DestinationPhase
from pageferry.policy.ownership import DestinationEvent, DestinationStep
from pageferry.qemu.monitor import Monitor
from pageferry.qemu.switchover import DestinationHandover
from pageferry.wire.messages import (
    Commit,
    Describe,
    DeviceLoaded,
    DeviceReady,
    Digest,
    Message,
    PrepareDevice,
    Ready,
    RoundAck,
    RoundEnd,
    Started,
    Verify,
)

MAX_CHANNELS = 16
"""Data connections that this side agrees to: each costs a thread."""

ATTACH_TIMEOUT_S = 30.0

LAST_WORDS_S = 0.5
"""How long to wait, after a data connection broke, for what the source says of it."""

DEVICE_DEADLINE_S = 60.0
"""For QEMU to load its device state once it comes."""


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
    qemu: Launching
    ownership: DestinationOwnership = field(default_factory=DestinationOwnership)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def run(self) -> None:
        """Returns when the guest is here for good; raises when it is not, having given it up."""
        receiver = RamReceiver(self.blocks, self.reader, self.progress, self._channels)
        qemu = DestinationHandover(self.monitor)
        identity = qemu_identity(self.monitor)
        arrival = Arrival(
            job=self.job,
            described=self.described,
            journal=self.journal,
            monitor=self.monitor,
            identity=identity,
            peer=self.peer,
            ownership=self.ownership,
        )
        try:
            await self.journal.record(
                DestinationPhase.READY,
                guest=self.job.guest,
                qmp=self.job.qmp,
                qemu=identity.as_dict(),
                **{"guest-running": self.described.guest_running},
                **self._launch_notes(),
            )
            self.qemu.recorded()
            async with self._stack:
                await self._take_in(receiver, qemu)
        except BaseException as error:
            # Once Commit was heard nothing that fails besides gives the guest up any more.
            if self.ownership.step is not DestinationStep.RECORD_COMMITTED:
                with trio.CancelScope(shield=True):
                    cause = await self._cause(error)
                    await arrival.give_up(receiver, cause)
                if cause is error:
                    raise
                raise cause from error
        with trio.CancelScope(shield=True):
            try:
                await arrival.commit()
            finally:
                if self.ownership.step is DestinationStep.NEVER:
                    self.qemu.release()
        self.progress.status = "completed"
        self.progress.phase = "done"

    def _launch_notes(self) -> dict[str, Any]:
        launched = self.qemu.launched
        return {} if launched is None else {"launched": launched.as_notes()}

    async def _cause(self, error: BaseException) -> BaseException:
        """A source that gives up ends its data connections, and says why on the other one."""
        if isinstance(error, Exception) and isinstance(explained(error), PeerLostError):
            return await self.peer.last_words(LAST_WORDS_S) or error
        return error

    @property
    def _channels(self) -> int:
        return min(self.described.channels, MAX_CHANNELS)

    async def _take_in(self, receiver: RamReceiver, qemu: DestinationHandover) -> None:
        """Everything up to Commit's arrival."""
        self.progress.status = "active"
        self.progress.enter("receiving")
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
            self.qemu.keep()
            self.ownership.on(DestinationEvent.HEARD_COMMIT)
            self.progress.enter("commit")
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
        self.progress.enter("switchover")
        relay = DeviceRelay(self.peer.send)
        self._stack.callback(relay.close)
        self.peer.device_sink = relay.deliver
        self.ownership.on(DestinationEvent.PREPARING)
        await qemu.prepare(relay.qemu_fd)
        relay.release_qemu_end()
        await self.peer.send(DeviceReady())
        nursery.start_soon(relay.pump)
        nursery.start_soon(self._load, qemu)

    async def _load(self, qemu: DestinationHandover) -> None:
        # It sets QEMU back now, not when the guest runs: whatever happens from here on, nothing of
        # the migration is left in it.
        await qemu.until_completed(None)
        self.ownership.on(DestinationEvent.LOADED)
        try:
            await self.journal.record(DestinationPhase.LOADED)
        except JournalError:
            self.ownership.on(DestinationEvent.NOT_RECORDED)
            raise
        self.ownership.on(DestinationEvent.RECORDED)
        await self.peer.send(DeviceLoaded())

    async def _digest(self, request: Verify) -> None:
        if request.algorithm != ALGORITHM:
            raise RemoteProtocolError(f"the source wants digests by {request.algorithm}")
        stop = trio.Event()

        def digests() -> dict[str, str]:
            return ram_digests(self.blocks, self.reader, stop.is_set)

        await self.peer.send(Digest(digests=await run_stoppable(digests, stop.set)))


def _unexpected(message: Message) -> PageferryError:
    return RemoteProtocolError(f"the source said {message.name}, which does not belong here")
