"""Carrying the RAM while the guest runs: first pass, rounds, and the last round when it is stopped.

Round 1 is the first pass over everything that has data. Pages that were left without write
protection when tracking began (`policy.leaving`) come in round 2, just after they were protected.

Every round ends with a barrier on all data connections and the destination's word that every page
is in its place, so that two versions of one page can never overtake each other.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from pageferry.kernel import procfs
from pageferry.kernel.cgroup import memory_cgroup_of
from pageferry.kernel.pageset import PageSet, Runs
from pageferry.kernel.residency import ResidencyReader
from pageferry.migration.estimating import Estimator
from pageferry.migration.guest_ram import CarriedBlock
from pageferry.migration.ledger import DataLedger
from pageferry.migration.peer import Peer
from pageferry.migration.progress import Progress
from pageferry.migration.sending import RamSender
from pageferry.migration.stoppable import run_stoppable
from pageferry.migration.swap_pacing import SwapPacer
from pageferry.migration.throttling import Throttle
from pageferry.migration.writes import GuestWrites
from pageferry.model.errors import (
    KernelFeatureError,
    MigrationFailedError,
    RemoteProtocolError,
)
from pageferry.model.parameters import MigrationParameters
from pageferry.model.phase import SourcePhase
from pageferry.policy.convergence import GiveUp, GoOn, SwitchOver, decide
from pageferry.policy.pacing import HostReading
from pageferry.policy.rounds import LEAST_ROUND_NS, NS_PER_S
from pageferry.policy.window import page_in_window_bytes
from pageferry.testing.faults import BACK_TO_BACK_ROUNDS, number_of
from pageferry.wire.messages import RoundAck, RoundEnd

log = logging.getLogger(__name__)


class Enter(Protocol):
    """Journal a phase before it begins."""

    def __call__(self, phase: SourcePhase, **notes: object) -> Awaitable[None]: ...


@dataclass(slots=True)
class Carry:
    """The source's RAM side of one migration. Everything runs in its caller's task and threads."""

    pid: int
    blocks: Sequence[CarriedBlock]
    sender: RamSender
    writes: GuestWrites
    reader: ResidencyReader
    peer: Peer
    progress: Progress
    parameters: MigrationParameters
    check_guest: Callable[[], Awaitable[None]]
    enter: Enter
    throttle: Throttle
    estimator: Estimator
    calm: HostReading
    _back_to_back_rounds: int = field(default_factory=lambda: number_of(BACK_TO_BACK_ROUNDS))
    pacer: SwapPacer = field(init=False)
    ledger: DataLedger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = DataLedger(self.blocks)
        self.pacer = SwapPacer(self.pid, self.sender, self.progress, self.parameters, self.calm)
        self.sender.bandwidth.set_rate(self.parameters.max_bandwidth)

    def tune(self, parameters: MigrationParameters) -> None:
        """Go on with other parameters: from the next decision on, and at once for the window and
        the bandwidths.
        """
        before, self.parameters = self.parameters, parameters
        self.pacer.tune(parameters)
        self.sender.bandwidth.set_rate(parameters.max_bandwidth)
        if parameters.window_bytes != before.window_bytes:
            # Set back, it is chosen anew; of a guest that has just ended nothing can be read.
            with contextlib.suppress(OSError, KernelFeatureError):
                self.progress.window_bytes = self._window_bytes()
                self.sender.set_window(self.progress.window_bytes)

    async def first_pass(self) -> None:
        """Everything once. Round 1: swapped pages through the window, then resident ones. Round 2:
        what was left unprotected, and what was written meanwhile.
        """
        await trio.to_thread.run_sync(self.ledger.list_all)
        data = [pages.copy() for pages in self.ledger.data]
        for pages, unprotected in zip(data, self.writes.left, strict=True):
            pages.discard_all(unprotected)
        swapped = await trio.to_thread.run_sync(self._swapped, data)
        self.progress.round = 1
        await self.enter(SourcePhase.COLD)
        await self._cold_pass(swapped)
        await self.enter(SourcePhase.RESIDENT)
        for pages, cold in zip(data, swapped, strict=True):
            pages.discard_all(cold)
        left = _count(self.writes.left)
        self.progress.enter("resident", _count(data) + left)
        await self._measured(lambda: self.sender.send_pages(1, data))
        await self._end_round(final=False)
        if left:
            await self._round(await self._written(prove=False, with_left=True), phase=None)

    async def rounds(self) -> list[PageSet]:
        """Send what was written, again and again, until the rest may be sent while the guest stops.

        Returns that rest, which is owed: its marks are cleared, but it has not been sent. Raises
        MigrationFailedError when the policy gives up.
        """
        while True:
            began_ns = time.monotonic_ns()
            await self.check_guest()
            written = await self._written(prove=False)
            decision = await self._decide(written)
            enough = self.progress.round >= self._back_to_back_rounds
            if isinstance(decision, SwitchOver) and enough:
                owed = await self._proven(written)
                if owed is not None:
                    return owed
                continue
            if isinstance(decision, GoOn):
                await self.throttle.set(decision.throttle_percent)
            await self._round(written)
            if not (isinstance(decision, GoOn) and decision.at_once):
                await self._let_the_guest_work(began_ns)

    async def last_round(self, owed: Sequence[PageSet]) -> None:
        """With the guest stopped: send what is owed and written, and settle data against holes.

        Its time grows with what was written and with the scan of the write marks, not with the
        guest's data: see `ledger`.
        """
        began_ns = time.monotonic_ns()
        written = await self._scan()
        for pages, rest in zip(written, owed, strict=True):
            pages.add_all(rest)
        # A comparison of all RAM takes far longer than the listing, and wants it exact.
        whole = True if self.parameters.verify else None
        fits = await trio.to_thread.run_sync(lambda: self.ledger.update(written, whole=whole))
        self.progress.round += 1
        sent_before, in_before = self.progress.normal_pages, self.progress.paged_in_pages
        await self._send_all(written, "switchover")
        await self._end_round(final=True)
        switchover = self.progress.switchover
        switchover.last_round_ns = time.monotonic_ns() - began_ns
        switchover.written_pages = self.progress.normal_pages - sent_before
        switchover.swapped_pages = self.progress.paged_in_pages - in_before
        if not fits:
            log.info("the guest gave memory back, or touched holes, as it was stopped")

    async def written_by_qemu(self) -> int:
        """Send what QEMU itself wrote while it saved its devices. Returns the pages (seen:
        none)."""
        written = await self._scan()
        pages = _count(written)
        if pages:
            self.progress.round += 1
            number = self.progress.round
            await self._thread(lambda: self.sender.send_pages(number, written))
            await self._end_round(final=True)
        return pages

    async def _cold_pass(self, swapped: Sequence[PageSet]) -> None:
        cold = _count(swapped)
        self.progress.cold_pages = cold
        self.progress.enter("cold", cold)
        self.progress.window_bytes = await trio.to_thread.run_sync(self._window_bytes)
        if not cold:
            return
        order = await trio.to_thread.run_sync(self._cold_order, swapped)
        began_ns = time.monotonic_ns()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.pacer.run)
            # The window may have been set since it was chosen.
            await self._thread(lambda: self.sender.send_cold(1, order, self.progress.window_bytes))
            nursery.cancel_scope.cancel()
        self.estimator.paged_in(self.progress.paged_in_pages, time.monotonic_ns() - began_ns)

    async def _scan(self) -> list[PageSet]:
        with self.estimator.scanning():
            return await self.writes.scan()

    async def _written(self, *, prove: bool, with_left: bool = False) -> list[PageSet]:
        """What is to be copied now: written and there, or there and never sent.

        *with_left*: what was left unprotected is among it, so it says nothing of the guest's rate.
        """
        written = await self._scan()
        if not with_left:
            self._note_written(written)
        written = await self.writes.drained_for(written, prove=prove)
        await trio.to_thread.run_sync(lambda: self.ledger.update(written, whole=True))
        return written

    async def _decide(self, written: Sequence[PageSet]) -> GoOn | SwitchOver:
        self.estimator.after_round(_count(written), self.throttle.percent)
        decision = self._decision(swapped_pages=0)
        if isinstance(decision, SwitchOver) and not decision.forced:
            # What was written and evicted since has to be paged in while the guest is stopped.
            swapped = await trio.to_thread.run_sync(self._swapped, written)
            decision = self._decision(_count(swapped))
        if isinstance(decision, SwitchOver) and decision.forced:
            log.warning("it does not converge: switching over all the same, as was asked")
        return decision

    def _decision(self, swapped_pages: int) -> GoOn | SwitchOver:
        expected_ms = self.estimator.expected_ms(swapped_pages)
        decision = decide(
            self.estimator.history, expected_ms, self.estimator.least_ms, self.parameters
        )
        if expected_ms is not None:
            self.progress.expected_downtime_ms = expected_ms
        if isinstance(decision, GiveUp):
            raise MigrationFailedError(decision.reason, advice=decision.advice)
        return decision

    async def _round(self, written: Sequence[PageSet], phase: str | None = "rounds") -> None:
        self.progress.round += 1
        await self._measured(lambda: self._send_round(written, phase))
        await self._end_round(final=False)

    async def _send_all(self, written: Sequence[PageSet], phase: str) -> None:
        await self._thread(lambda: self._send_round(written, phase))

    def _send_round(self, written: Sequence[PageSet], phase: str | None) -> None:
        """Send *written* and whatever there is that was never sent, and tell what is gone.

        *phase* None: in the one that it is in.
        """
        gone = []
        for pages, present, sent, settled in zip(
            written, self.ledger.data, self.sender.sent, self.sender.settled, strict=True
        ):
            never_sent = present.copy()
            never_sent.discard_all(settled)
            pages.add_all(never_sent)
            holes = sent.copy()
            holes.discard_all(present)
            gone.append(holes)
        if phase is not None:
            self.progress.enter(phase, _count(written))
        number = self.progress.round
        self.sender.send_pages(number, written)
        self.sender.send_holes(number, gone)

    async def _measured(self, send: Callable[[], None]) -> None:
        """Send, and remember how many pages went in which time: the rate of the next decision."""
        sent_before = self.progress.normal_pages
        began_ns = time.monotonic_ns()
        await self._thread(send)
        pages = self.progress.normal_pages - sent_before
        self.estimator.sent(pages, time.monotonic_ns() - began_ns)

    async def _proven(self, written: list[PageSet]) -> list[PageSet] | None:
        """*written*, after a round that leaves no copied page without a drain since its scan.

        None when too much was written during that round: then there must be more rounds.
        """
        if not self.writes.owes_proof:
            return written
        await self._round(await self._written(prove=True))
        rest = await self._scan()
        await trio.to_thread.run_sync(lambda: self.ledger.update(rest, whole=True))
        if isinstance(await self._decide(rest), SwitchOver):
            return rest
        self.writes.postpone(rest)
        await self._round(rest)
        return None

    async def _end_round(self, *, final: bool) -> None:
        number = self.progress.round
        frames = await self._thread(lambda: self.sender.finish_round(number))
        with self.estimator.acknowledging():
            await self.peer.send(RoundEnd(round=number, frames_per_channel=frames, final=final))
            ack = await self.peer.expect(RoundAck)
        if ack.round != number:
            raise RemoteProtocolError(
                f"the destination acknowledged round {ack.round} instead of {number}"
            )

    async def _let_the_guest_work(self, began_ns: int) -> None:
        left_ns = LEAST_ROUND_NS - (time.monotonic_ns() - began_ns)
        if left_ns > 0 and not self._back_to_back_rounds:
            await trio.sleep(left_ns / NS_PER_S)

    async def _thread(self, work: Callable[[], object]) -> list[int]:
        result = await run_stoppable(work, self.sender.stop)
        return result if isinstance(result, list) else []

    def _note_written(self, written: Sequence[PageSet]) -> None:
        since_ns = max(1, self.estimator.since_scan_ns)
        self.estimator.pages_written_per_s = _count(written) * NS_PER_S / since_ns
        self.progress.dirty_pages_rate = int(self.estimator.pages_written_per_s)

    def _swapped(self, data: Sequence[PageSet]) -> list[PageSet]:
        return [
            self.reader.swapped(carried.mapping, pages)
            for carried, pages in zip(self.blocks, data, strict=True)
        ]

    def _window_bytes(self) -> int:
        return page_in_window_bytes(
            memory_cgroup_of(self.pid).headroom_bytes(),
            procfs.host_headroom_bytes(),
            self.parameters.window_bytes,
            self.parameters.max_bandwidth,
        )

    def _cold_order(self, swapped: Sequence[PageSet]) -> list[tuple[int, Runs]]:
        """Swapped runs in the order of their swap slots where the kernel tells, else of offset."""
        order: list[tuple[int, Runs]] = []
        for index, (carried, pages) in enumerate(zip(self.blocks, swapped, strict=True)):
            by_slot = self.reader.cold_order(carried.mapping, pages)
            batches = by_slot if by_slot is not None else [pages.runs()]
            order.extend((index, runs) for runs in batches)
        return order


def _count(sets: Sequence[PageSet]) -> int:
    return sum(pages.count() for pages in sets)
