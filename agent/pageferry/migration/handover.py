"""The switchover as the source leads it: stop, last round, device state, and the way back.

The order is what worked on every QEMU tried: QEMU stops the guest at ``pre-switchover``; the last
written pages go out and are acknowledged; only then may device state flow, because a destination
that gets device state before its RAM is complete dies of it. One more scan finds what QEMU wrote
itself while it saved its devices.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import trio

from pageferry.kernel.pageset import PageSet
from pageferry.migration.carry import Carry
from pageferry.migration.owning import ended, qemu_identity
from pageferry.migration.peer import Peer
from pageferry.migration.progress import Progress
from pageferry.migration.relay import DeviceRelay
from pageferry.migration.stoppable import run_stoppable
from pageferry.migration.throttling import Throttle
from pageferry.migration.verify import ALGORITHM, StoppedError, ram_digests
from pageferry.model.errors import MigrationFailedError, QemuError
from pageferry.model.phase import SourcePhase
from pageferry.policy.ownership import SourceEvent
from pageferry.qemu.monitor import Monitor
from pageferry.qemu.switchover import SourceHandover, guest_status
from pageferry.wire.messages import DeviceReady, Digest, PrepareDevice, Verify

STOP_DEADLINE_S = 30.0
"""QEMU reaches pre-switchover in 2 to 15 ms; stopping waits for block I/O in flight, which may take
as long as the storage's own timeout."""

DEVICE_DEADLINE_S = 60.0
"""For device state of any size to be saved, carried and loaded."""

EXIT_S = 2.0
"""How long to wait for the end of a QEMU that does not answer. One that takes longer, since it
gives back a guest's RAM, is found to be gone when its journal is settled."""

ENDED_WITH_QEMU = "ended with its QEMU on the source; the destination never runs it"


class Handover:
    """One switchover. `run` it, or `take_back` from wherever it got to."""

    def __init__(
        self, qemu: SourceHandover, monitor: Monitor, peer: Peer, progress: Progress
    ) -> None:
        self._qemu = qemu
        self._monitor = monitor
        self._peer = peer
        self._progress = progress
        self._prepared = False
        self._was_running = True
        self._decided_ns = 0
        self._stopped_ns: int | None = None
        self._compared_ns = 0
        self._loaded_ns = 0
        self.throttle: Throttle | None = None
        """Released when the guest stands still: not before, or it would write at full speed."""
        self.costs: tuple[int, int] | None = None
        """What this switchover cost beside its last round, and how long it took until the guest
        stood still, in ns; once the destination runs it."""
        self._identity = qemu_identity(monitor)
        self.back = SourceEvent.QEMU_STUCK
        """What came of `take_back`: IS_BACK when the guest is as it was before the switchover."""

    async def run(self, carry: Carry, owed: Sequence[PageSet], *, verify: bool) -> None:
        """Bring the destination to where only the commit is missing.

        Raises PageferryError; then, and after a cancellation, call `take_back`.
        """
        self._decided_ns = carry.estimator.scanned_ns
        await self._end_slices()
        self._was_running = await self._running()
        notes = {
            "was-running": self._was_running,
            # For whoever takes the guest back when this process is gone.
            "capabilities": await self._qemu.changes(),
        }
        await carry.enter(SourcePhase.SWITCHOVER, **notes)
        self._progress.enter("switchover")
        await self._peer.send(PrepareDevice())
        await self._peer.expect(DeviceReady)
        relay = DeviceRelay(self._peer.send)
        self._peer.device_sink = relay.deliver
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay.pump)
                await self._stop_guest(relay)
                if self.throttle is not None:
                    nursery.start_soon(self.throttle.release)
                await carry.last_round(owed)
                if verify:
                    began_ns = time.monotonic_ns()
                    await self._compare(carry)
                    self._compared_ns = time.monotonic_ns() - began_ns
                await carry.enter(SourcePhase.DEVICE)
                self._progress.status = "device"
                await self._qemu.complete(DEVICE_DEADLINE_S)
                await carry.written_by_qemu()
                with trio.move_on_after(DEVICE_DEADLINE_S) as waiting:
                    await self._peer.device_loaded.wait()
                    # The destination must have had all of the stream.
                    await relay.ended.wait()
                if waiting.cancelled_caught:
                    raise MigrationFailedError(
                        "the destination did not load the device state in time",
                        advice="look at the destination QEMU's own log",
                    )
                self._loaded_ns = time.monotonic_ns()
        finally:
            self._peer.device_sink = None
            relay.close()

    async def take_back(self) -> str:
        """Make the guest the source's again, running if it ran. Returns its state in words.

        Only to be called while the destination provably does not run it. Never raises
        PageferryError: what went wrong is in the words.
        """
        if not self._prepared:
            self.back = SourceEvent.IS_BACK
            return "on the source, as before"
        try:
            await self._qemu.cancel(resume=self._was_running)
        except QemuError as error:
            if await ended(self._identity, EXIT_S):
                self.back = SourceEvent.QEMU_GONE
                return ENDED_WITH_QEMU
            return (
                f"on the source, but it could not be brought back: {error.message}. It may be"
                " stopped; pageferryd tries again. By hand: `migrate_cancel` and `cont` on its"
                " QMP socket"
            )
        self.back = SourceEvent.IS_BACK
        return "runs on the source" if self._was_running else "paused on the source, as before"

    @property
    def was_running(self) -> bool:
        """Whether the guest ran when the switchover began."""
        return self._was_running

    def destination_runs(self) -> None:
        """Note the end of the downtime."""
        if self._stopped_ns is None or not self._was_running:
            return
        now_ns = time.monotonic_ns()
        downtime_ns = now_ns - self._stopped_ns
        self._progress.downtime_ns = downtime_ns
        switchover = self._progress.switchover
        switchover.commit_ns = now_ns - self._loaded_ns
        rest_ns = downtime_ns - switchover.last_round_ns - self._compared_ns
        switchover.device_ns = max(0, rest_ns - switchover.commit_ns)
        self.costs = max(0, rest_ns), max(0, self._stopped_ns - self._decided_ns)

    async def _stop_guest(self, relay: DeviceRelay) -> None:
        self._prepared = True
        await self._qemu.prepare()
        await self._qemu.stop(relay.qemu_fd, STOP_DEADLINE_S)
        relay.release_qemu_end()
        self._stopped_ns = time.monotonic_ns()
        self._progress.status = "pre-switchover"

    async def _end_slices(self) -> None:
        """A guest that is throttled by being stopped must run: QEMU remembers in which state it
        was."""
        if self.throttle is not None and self.throttle.is_slicing:
            await self.throttle.release()

    async def _running(self) -> bool:
        status = await guest_status(self._monitor)
        if status not in ("running", "paused"):
            raise MigrationFailedError(
                f"the guest is in state {status} now, which cannot be handed over",
                advice="bring the guest to running or paused and migrate again",
            )
        return status == "running"

    async def _compare(self, carry: Carry) -> None:
        """Compare a digest of all RAM of both sides; the guest is stopped on both."""
        stop = trio.Event()
        await self._peer.send(Verify(algorithm=ALGORITHM))

        def digests() -> dict[str, str]:
            return ram_digests(carry.blocks, carry.reader, stop.is_set)

        try:
            ours = await run_stoppable(digests, stop.set)
        except StoppedError:
            raise MigrationFailedError("verification was interrupted") from None
        theirs = (await self._peer.expect(Digest)).digests
        different = sorted(name for name in ours if ours[name] != theirs.get(name))
        self._progress.verified = not different
        if different:
            raise MigrationFailedError(
                f"verification failed: RAM block {', '.join(different)} is not the same on the"
                " destination, so the guest was not handed over",
                advice="report this as a bug, with both agents' logs",
            )
