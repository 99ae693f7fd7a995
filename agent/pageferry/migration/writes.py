"""The guest's writes, and when a copy of a written page may be believed.

Scanning clears the mark that says a page was written. Direct I/O that QEMU submitted before the
scan may fill the page after it without marking it again, so a copy made at once can be stale for
good. Hence scan, drain, copy: a drain (an empty QMP transaction) waits for all block I/O in flight,
and what is submitted later marks its pages anew.

A drain holds the guest up for as long as the slowest I/O takes. Where one proves slow it is
postponed: pages are copied at once but stay *unproven*, and all unproven pages are copied once more
after the next drain, of which one comes before the switchover in any case.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import trio

from pageferry.kernel.pageset import PageSet
from pageferry.kernel.residency import allocated_pages
from pageferry.kernel.tracking import AddressRange, WriteTracker, mapped_pages
from pageferry.migration.guest_ram import BlockRange, CarriedBlock
from pageferry.policy.leaving import MOST_RUNS_LEFT, mapped_is_left
from pageferry.policy.scanning import WORD_PAGES, scan_pieces, scan_threads
from pageferry.testing.faults import DRAIN_EVERY_ROUND, SKIP_DRAIN, is_broken

SLOW_DRAIN_NS = 20_000_000
"""A drain that took this long stalls the guest noticeably (the median is 0.4 ms): postpone the
next."""

Drain = Callable[[], Awaitable[float]]


class GuestWrites:
    """Write tracking of all carried blocks. `close` undoes it; so does the end of this process."""

    def __init__(
        self,
        tracker: WriteTracker,
        blocks: Sequence[CarriedBlock],
        drain: Drain,
        left: Sequence[PageSet],
    ) -> None:
        self.left = left
        """Pages that were left unprotected, one set a block: the first scan calls them written."""
        self._tracker = tracker
        self._blocks = blocks
        self._drain = drain
        self._unproven = _empty(blocks)
        # Made once: a scan that stops the guest must not list what does not change.
        self._pieces = [
            (index, BlockRange(AddressRange(start, end), first_page))
            for index, carried in enumerate(blocks)
            for part in carried.ranges
            for start, end, first_page in scan_pieces(
                part.addresses.start, part.addresses.end, part.first_page
            )
        ]
        # A block that QEMU maps in parts which do not begin at a word of the set: one by one.
        self._divides = len(self._pieces) > 1 and all(
            part.first_page % WORD_PAGES == 0 for carried in blocks for part in carried.ranges
        )
        self._threads = ThreadPoolExecutor(scan_threads(len(os.sched_getaffinity(0))), "scan")
        self.drain_ns: list[int] = []

    @classmethod
    def arm(
        cls,
        pid: int,
        blocks: Sequence[CarriedBlock],
        drain: Drain,
        vcpu_threads: Collection[int] = (),
        *,
        leave_mapped: bool = False,
    ) -> GuestWrites:
        """Begin to track QEMU process *pid*; blocks, so call it in a thread.

        With *leave_mapped* the pages that QEMU has mapped are left as they are, if that is worth
        it: see `left`. Raises RefusedError when the RAM is tracked by someone else,
        KernelFeatureError.
        """
        ranges = [part.addresses for carried in blocks for part in carried.ranges]
        tracker = WriteTracker.begin(pid, ranges, avoid_threads=vcpu_threads)
        try:
            left = _worth_leaving(pid, blocks) if leave_mapped else _empty(blocks)
            for carried, pages in zip(blocks, left, strict=True):
                for part in carried.ranges:
                    tracker.protect(part.addresses, pages, part.first_page)
            return cls(tracker, blocks, drain, left)
        except BaseException:
            tracker.close()
            raise

    @property
    def owes_proof(self) -> bool:
        """Whether pages were copied since the last drain; they must be copied once more."""
        return any(self._unproven)

    async def drained(self) -> None:
        """Wait for all block I/O in flight, and note how long it took."""
        await self._drain_measured()

    async def drained_for(self, written: list[PageSet], *, prove: bool) -> list[PageSet]:
        """*written*, just scanned, when it may be copied: with what was owed a proof, if drained.

        With *prove*, or when drains are quick, a drain comes first. Pages that were given back
        since (balloon) may be among them: they are holes, and not to be read. After a cancellation
        marks may be lost: the migration must be given up.
        """
        if prove or not self._drains_are_slow():
            await self._drain_measured()
            for pages, unproven in zip(written, self._unproven, strict=True):
                pages.add_all(unproven)
                unproven.clear()
        else:
            self.postpone(written)
        return written

    def postpone(self, written: Sequence[PageSet]) -> None:
        """These are copied without a drain: they are owed a proof."""
        for pages, unproven in zip(written, self._unproven, strict=True):
            unproven.add_all(pages)

    async def scan(self) -> list[PageSet]:
        """Read and clear the marks: what was written since the last call, one set a block.

        Without a drain what direct I/O has in flight may be missing: see `drained_for`. Raises
        TrackingLostError.
        """
        return await trio.to_thread.run_sync(self._scan)

    def close(self) -> None:
        """End tracking: the kernel takes the protection off QEMU's memory. Blocks for 4 ms a
        GiB."""
        self._tracker.close()
        self._threads.shutdown()

    async def _drain_measured(self) -> None:
        started_ns = time.monotonic_ns()
        if not is_broken(SKIP_DRAIN):
            await self._drain()
        self.drain_ns.append(time.monotonic_ns() - started_ns)

    def _drains_are_slow(self) -> bool:
        slow = bool(self.drain_ns) and self.drain_ns[-1] > SLOW_DRAIN_NS
        return slow and not is_broken(DRAIN_EVERY_ROUND)

    def _scan(self) -> list[PageSet]:
        found = _empty(self._blocks)
        scans = [
            partial(self._tracker.scan, piece.addresses, found[index], piece.first_page)
            for index, piece in self._pieces
        ]
        if self._divides:
            for ended in [self._threads.submit(scan) for scan in scans]:
                ended.result()
        else:
            for scan in scans:
                scan()
        return found


def _empty(blocks: Sequence[CarriedBlock]) -> list[PageSet]:
    return [PageSet(carried.block.pages) for carried in blocks]


def _worth_leaving(pid: int, blocks: Sequence[CarriedBlock]) -> list[PageSet]:
    """What QEMU has mapped; nothing when that is most of what there is."""
    mapped = _empty(blocks)
    for carried, pages in zip(blocks, mapped, strict=True):
        for part in carried.ranges:
            mapped_pages(pid, part.addresses, pages, part.first_page)
    files = {(carried.device, carried.inode): carried.mapping for carried in blocks}
    data = sum(allocated_pages(mapping) for mapping in files.values())
    if not mapped_is_left(sum(pages.count() for pages in mapped), data):
        return _empty(blocks)
    for pages in mapped:
        pages.keep_long_runs(MOST_RUNS_LEFT)
    return mapped
