"""Carrying the RAM while the guest runs: first pass, rounds, and the last round when it is stopped.

Numbers of rounds start at 1, which is the first pass over everything that has data. Every round
ends with a barrier on all data connections and the destination's word that every page is in its
place, so that two versions of one page can never overtake each other.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from pageferry.kernel import procfs
from pageferry.kernel.cgroup import memory_cgroup_of
from pageferry.kernel.pageset import PageSet, Runs
from pageferry.kernel.residency import ResidencyReader, data_pages
from pageferry.kernel.tracking import mapped_pages
from pageferry.migration.guest_ram import CarriedBlock
from pageferry.migration.peer import Peer
from pageferry.migration.progress import Progress
from pageferry.migration.sending import RamSender
from pageferry.migration.stoppable import run_stoppable
from pageferry.migration.writes import GuestWrites
from pageferry.model.errors import MigrationFailedError, RemoteProtocolError
from pageferry.model.parameters import MigrationParameters
from pageferry.model.phase import SourcePhase
from pageferry.policy.order import split_resident
from pageferry.policy.rounds import (
    NS_PER_S,
    GiveUp,
    GoOn,
    RoundHistory,
    RoundRecord,
    SwitchOver,
    decide,
)
from pageferry.policy.window import page_in_window_bytes
from pageferry.testing.sabotage import BACK_TO_BACK_ROUNDS, sabotage_number
from pageferry.wire.messages import RoundAck, RoundEnd

MIN_ROUND_S = 0.1
"""Rounds that follow each other faster only cost the guest a minor fault for each hot page, again
and again, for a set that has not had the time to change."""


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
    _history: RoundHistory = field(default_factory=RoundHistory)
    _last_round: tuple[int, int] = (0, 0)
    _scanned_ns: int = 0
    _back_to_back_rounds: int = field(default_factory=lambda: sabotage_number(BACK_TO_BACK_ROUNDS))

    def tune(self, parameters: MigrationParameters) -> None:
        """Go on with other parameters: from the next decision on, and at once for the window."""
        self.parameters = parameters
        if parameters.window_bytes is not None:
            self.progress.window_bytes = parameters.window_bytes
            self.sender.set_window(parameters.window_bytes)

    async def first_pass(self) -> None:
        """Round 1: swapped pages through the window, then resident ones, QEMU's mapped ones
        last."""
        data = await trio.to_thread.run_sync(self._data)
        swapped = await trio.to_thread.run_sync(self._swapped, data)
        self.progress.round = 1
        await self.enter(SourcePhase.COLD)
        await self._cold_pass(swapped)
        await self.enter(SourcePhase.RESIDENT)
        for pages, cold in zip(data, swapped, strict=True):
            pages.discard_all(cold)
        await self._resident_pass(data)
        await self._end_round(final=False)

    async def rounds(self) -> list[PageSet]:
        """Send what was written, again and again, until the rest may be sent while the guest stops.

        Returns that rest, which is owed: its marks are cleared, but it has not been sent. Raises
        MigrationFailedError when the policy gives up.
        """
        while True:
            began_ns = time.monotonic_ns()
            await self.check_guest()
            written = await self.writes.written(prove=False)
            pages = _count(written)
            self._note_dirty_rate(pages, began_ns)
            decision = self._decide(pages)
            self.progress.expected_downtime_ms = decision.expected_downtime_ms
            enough = self.progress.round >= self._back_to_back_rounds
            if isinstance(decision, SwitchOver) and enough:
                return await self._proven(written)
            await self._round(written)
            await self._let_the_guest_work(began_ns)

    async def last_round(self, owed: Sequence[PageSet]) -> None:
        """With the guest stopped: send what is owed and written, and settle data against holes."""
        written = await self.writes.scan()
        data = await trio.to_thread.run_sync(self._data)
        gone = []
        for pages, rest, present, sent, settled in zip(
            written, owed, data, self.sender.sent, self.sender.settled, strict=True
        ):
            pages.add_all(rest)
            never_sent = present.copy()
            never_sent.discard_all(settled)
            pages.add_all(never_sent)
            pages.keep_all(present)
            holes = sent.copy()
            holes.discard_all(present)
            gone.append(holes)
        self.progress.round += 1
        self.progress.enter("switchover", _count(written))
        number = self.progress.round
        await self._thread(lambda: self.sender.send_pages(number, written))
        await self._thread(lambda: self.sender.send_holes(number, gone))
        await self._end_round(final=True)

    async def written_by_qemu(self) -> int:
        """Send what QEMU itself wrote while it saved its devices. Returns the pages (seen:
        none)."""
        written = await self.writes.scan()
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
        window_bytes = await trio.to_thread.run_sync(self._window_bytes)
        self.progress.window_bytes = window_bytes
        if not cold:
            return
        order = await trio.to_thread.run_sync(self._cold_order, swapped)
        await self._thread(lambda: self.sender.send_cold(1, order, window_bytes))

    async def _resident_pass(self, resident: Sequence[PageSet]) -> None:
        self.progress.enter("resident", _count(resident))
        in_qemu = await trio.to_thread.run_sync(self._mapped)
        halves = [
            split_resident(pages, mapped) for pages, mapped in zip(resident, in_qemu, strict=True)
        ]

        def send() -> None:
            self.sender.send_pages(1, [unmapped for unmapped, _mapped in halves])
            self.sender.send_pages(1, [mapped for _unmapped, mapped in halves])

        await self._measured(send)

    def _decide(self, remaining_pages: int) -> GoOn | SwitchOver:
        sent_pages, duration_ns = self._last_round
        self._history = self._history.with_round(
            RoundRecord(sent_pages, duration_ns, remaining_pages)
        )
        decision = decide(
            self._history, self.parameters.downtime_limit_ms, self.parameters.max_rounds
        )
        if isinstance(decision, GiveUp):
            raise MigrationFailedError(decision.reason, advice=decision.advice)
        return decision

    async def _round(self, written: Sequence[PageSet]) -> None:
        self.progress.round += 1
        number = self.progress.round
        self.progress.enter("rounds", _count(written))
        await self._measured(lambda: self.sender.send_pages(number, written))
        await self._end_round(final=False)

    async def _measured(self, send: Callable[[], None]) -> None:
        """Send, and remember how many pages went in which time: the rate of the next decision."""
        sent_before = self.progress.normal_pages
        began_ns = time.monotonic_ns()
        await self._thread(send)
        self._last_round = (
            self.progress.normal_pages - sent_before,
            time.monotonic_ns() - began_ns,
        )

    async def _proven(self, written: list[PageSet]) -> list[PageSet]:
        """*written*, after a round that leaves no copied page without a drain since its scan."""
        if not self.writes.owes_proof:
            return written
        await self._round(await self.writes.written(prove=True))
        return await self.writes.scan()

    async def _end_round(self, *, final: bool) -> None:
        number = self.progress.round
        frames = await self._thread(lambda: self.sender.finish_round(number))
        await self.peer.send(RoundEnd(round=number, frames_per_channel=frames, final=final))
        ack = await self.peer.expect(RoundAck)
        if ack.round != number:
            raise RemoteProtocolError(
                f"the destination acknowledged round {ack.round} instead of {number}"
            )

    async def _let_the_guest_work(self, began_ns: int) -> None:
        elapsed_s = (time.monotonic_ns() - began_ns) / 1e9
        if elapsed_s < MIN_ROUND_S and not self._back_to_back_rounds:
            await trio.sleep(MIN_ROUND_S - elapsed_s)

    async def _thread(self, work: Callable[[], object]) -> list[int]:
        result = await run_stoppable(work, self.sender.stop)
        return result if isinstance(result, list) else []

    def _note_dirty_rate(self, pages: int, scanned_ns: int) -> None:
        if self._scanned_ns:
            since_ns = max(1, scanned_ns - self._scanned_ns)
            self.progress.dirty_pages_rate = pages * NS_PER_S // since_ns
        self._scanned_ns = scanned_ns

    def _data(self) -> list[PageSet]:
        return [data_pages(carried.mapping) for carried in self.blocks]

    def _swapped(self, data: Sequence[PageSet]) -> list[PageSet]:
        return [
            self.reader.swapped(carried.mapping, pages)
            for carried, pages in zip(self.blocks, data, strict=True)
        ]

    def _mapped(self) -> list[PageSet]:
        found = []
        for carried in self.blocks:
            pages = PageSet(carried.block.pages)
            for part in carried.ranges:
                mapped_pages(self.pid, part.addresses, pages, part.first_page)
            found.append(pages)
        return found

    def _window_bytes(self) -> int:
        return page_in_window_bytes(
            memory_cgroup_of(self.pid).headroom_bytes(),
            procfs.host_headroom_bytes(),
            self.parameters.window_bytes,
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
