"""Residency and paging against ground truth that the test made, with real swap.

The oracles are independent of pageferry.kernel: the lab's own cachestat, page by page, the file's
blocks, and smaps.
"""

from __future__ import annotations

import mmap
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pageferry.kernel import paging, procfs
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import PageSet, Runs
from pageferry.kernel.probe_result import Degree
from pageferry.kernel.residency import (
    CachestatReader,
    MincoreReader,
    PagemapReader,
    ResidencyReader,
    choose_reader,
    data_pages,
    probe_readers,
    residency,
    summary,
)
from pageferry.kernel.transfer import Scratch, receive_payload
from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.errors import KernelFeatureError
from pageferry.testing.lab.cgroups import memory_cgroup
from pageferry.testing.lab.hosts import cached_bytes
from pageferry.testing.lab.swap import SwapArea
from tests.host.tracked import TrackedProcess
from tests.support import need

pytestmark = [pytest.mark.root, pytest.mark.swap]

PAGES = 4096
FIRST_PAGE = 3  # of the block within its file


class Ram:
    """A RAM file with a known pattern in known pages; the others are holes."""

    def __init__(self, fd: int, data: set[int]) -> None:
        self.fd = fd
        self.data = data
        os.ftruncate(fd, (FIRST_PAGE + PAGES) * PAGE_BYTES)
        for page in data:
            os.pwrite(fd, self.pattern(page), (FIRST_PAGE + page) * PAGE_BYTES)
        self.mapping = RamMapping(fd, FIRST_PAGE * PAGE_BYTES, PAGES * PAGE_BYTES)

    @staticmethod
    def pattern(page: int) -> bytes:
        return (page * 2654435761 % 2**64 | 1).to_bytes(8, "little") * (PAGE_BYTES // 8)

    def page_out(self, pages: set[int]) -> None:
        runs = Runs.from_pages(pages)
        paging.populate(self.mapping, runs)
        assert paging.page_out(self.mapping, runs, thorough=True) == 0
        paging.drop(self.mapping, runs)

    def cached(self) -> set[int]:
        """The oracle: pages in the page cache, asked one by one."""
        return {
            page
            for page in range(PAGES)
            if cached_bytes(self.fd, (FIRST_PAGE + page) * PAGE_BYTES, PAGE_BYTES)
        }

    def set_of(self, pages: set[int]) -> PageSet:
        found = PageSet(PAGES)
        found.add_runs(Runs.from_pages(pages))
        return found


def members(pages: PageSet) -> set[int]:
    return {page for start, count in pages.runs() for page in range(start, start + count)}


@pytest.fixture
def ram(swap: SwapArea, ram_fd: int) -> Iterator[Ram]:
    stream = random.Random(11)
    made = Ram(ram_fd, {page for page in range(PAGES) if stream.random() < 0.7} - {*range(64)})
    yield made
    made.mapping.close()


def exact_readers() -> list[ResidencyReader]:
    supported = {result.name for result in probe_readers() if result.supported}
    exact: tuple[ResidencyReader, ...] = (PagemapReader(), CachestatReader())
    return [reader for reader in exact if reader.name in supported]


def test_exact_readers_find_every_swapped_page(ram: Ram) -> None:
    stream = random.Random(12)
    scattered = {page for page in ram.data if stream.random() < 0.5} | (
        ram.data & {*range(1000, 2500)}
    )
    ram.page_out(scattered)
    swapped = ram.data - ram.cached()
    assert swapped >= scattered
    assert len(swapped) < len(ram.data)
    assert exact_readers()
    for reader in exact_readers():
        data, found = residency(ram.mapping, reader)
        assert members(data) == ram.data
        assert members(found) == swapped, reader.name
        asked = Runs.from_pages({page for page in ram.data if page % 3})
        evicted = {
            page
            for start, count in reader.evicted_in(ram.mapping, asked)
            for page in range(start, start + count)
        }
        assert evicted == {page for page in swapped if page % 3}


def test_nothing_is_touched_by_looking(ram: Ram) -> None:
    ram.page_out(ram.data)
    assert not ram.cached()
    blocks = os.fstat(ram.fd).st_blocks
    for reader in (*exact_readers(), MincoreReader()):
        residency(ram.mapping, reader)
    assert not ram.cached()
    assert os.fstat(ram.fd).st_blocks == blocks


def test_mincore_never_calls_a_resident_page_swapped(ram: Ram) -> None:
    ram.page_out({page for page in ram.data if page % 2})
    found = members(MincoreReader().swapped(ram.mapping, ram.set_of(ram.data)))
    assert found <= ram.data - ram.cached()


def test_mincore_finds_what_has_left_the_swap_cache(swap: SwapArea, ram_fd: int) -> None:
    with memory_cgroup("kernel-test") as group:
        if group.version != 1:
            pytest.skip("only version 1 can be told to empty a cgroup completely")
        before = int(Path("/proc/self/stat").read_text().split()[0])
        home = _own_memory_cgroup()
        group.join(before)
        try:
            ram = Ram(ram_fd, {*range(100, 900)})
        finally:
            (home / "cgroup.procs").write_text(str(before))
        ram.page_out(ram.data)
        found: set[int] = set()
        for _ in range(20):  # what is still being written stays in the swap cache
            (group.path / "memory.force_empty").write_text("0")
            found = members(MincoreReader().swapped(ram.mapping, data_pages(ram.mapping)))
            if found == ram.data:
                break
        assert found <= ram.data
        assert len(found) > 0.98 * len(ram.data)
        ram.mapping.close()
        os.ftruncate(ram_fd, 0)


def _own_memory_cgroup() -> Path:
    from pageferry.kernel.cgroup import memory_cgroup_of

    return memory_cgroup_of(os.getpid()).path


def test_summary_adds_up(ram: Ram) -> None:
    ram.page_out(ram.data)
    totals = summary(*residency(ram.mapping, CachestatReader()))
    assert totals.swapped_bytes == len(ram.data) * PAGE_BYTES
    assert totals.resident_bytes == 0
    assert totals.hole_bytes == (PAGES - len(ram.data)) * PAGE_BYTES


def test_pages_come_back_as_they_were_and_smaps_agrees(ram: Ram) -> None:
    ram.page_out(ram.data)
    status = os.fstat(ram.fd)
    (detail,) = (
        d
        for d in procfs.smaps_of(os.getpid())
        if (d.entry.dev, d.entry.inode) == (status.st_dev, status.st_ino)
    )
    assert detail.sizes_bytes["Swap"] == len(ram.data) * PAGE_BYTES
    assert "sr" in detail.flags
    assert "dc" in detail.flags
    assert "wr" not in detail.flags, "page-out would interrupt the other processors for each page"
    runs = Runs.from_pages(ram.data)
    paging.will_need(ram.mapping, runs)
    paging.populate(ram.mapping, runs)
    assert all(ram.mapping.view(page, 1) == ram.pattern(page) for page in ram.data)
    assert ram.cached() >= ram.data


def test_window_of_a_cold_pass_stays_bounded_and_everything_goes_out_again(ram: Ram) -> None:
    window_pages = 256
    ram.page_out(ram.data)
    most = 0
    for runs in data_pages(ram.mapping).runs().pieces(window_pages):
        nonzero, zero = paging.bring_in(ram.mapping, runs, swapped=True)
        assert nonzero == runs
        assert not zero.pages
        most = max(most, len(ram.cached()))
        # But for the last few, which may be in another processor's batch.
        if paging.put_out(ram.mapping, runs):
            paging.populate(ram.mapping, runs)
            assert paging.page_out(ram.mapping, runs, thorough=True) == 0
            paging.drop(ram.mapping, runs)
    assert window_pages <= most <= window_pages + 64  # swap read-ahead may bring in neighbours
    assert not ram.cached()
    assert members(data_pages(ram.mapping)) == ram.data


def test_page_out_counts_what_the_guest_has_touched(
    swap: SwapArea, ram_fd: int, track: Callable[[int], TrackedProcess]
) -> None:
    ram = Ram(ram_fd, {*range(PAGES)})
    guest = track(FIRST_PAGE + PAGES)
    ram.page_out(ram.data)
    runs = Runs.from_pairs([(0, 1024)])
    paging.populate(ram.mapping, runs)
    guest.tell("read", FIRST_PAGE + 100, FIRST_PAGE + 700)
    stayed = paging.page_out(ram.mapping, runs, thorough=True)
    cached = ram.cached() & {*range(1024)}
    assert {100, 700} <= cached
    assert stayed == len(cached)
    assert stayed <= 2 * 16  # fault-around maps the neighbours too, 64 KiB at most
    ram.mapping.close()


def test_page_out_without_a_mapping_leaves_everything(ram: Ram) -> None:
    runs = Runs.from_pages(ram.data)
    paging.drop(ram.mapping, runs)
    cached = ram.cached()
    assert paging.page_out(ram.mapping, runs) == len(cached)
    assert paging.put_out(ram.mapping, runs) == len(cached)


def test_put_out_maps_what_is_only_in_the_page_cache(ram: Ram) -> None:
    runs = Runs.from_pages(ram.data)
    paging.drop(ram.mapping, runs)
    stayed = paging.put_out(ram.mapping, runs, map_first=True)
    assert stayed == len(ram.cached())
    assert stayed <= 31 * len(os.sched_getaffinity(0)), "what may be in the processors' batches"
    assert members(data_pages(ram.mapping)) == ram.data


def test_bring_in_parts_pages_of_zeros(ram: Ram) -> None:
    zeros = sorted(ram.data)[::3]
    for page in zeros:
        os.pwrite(ram.fd, bytes(PAGE_BYTES), (FIRST_PAGE + page) * PAGE_BYTES)
    ram.page_out(ram.data)
    nonzero, zero = paging.bring_in(ram.mapping, Runs.from_pages(ram.data), swapped=True)
    assert zero == Runs.from_pages(zeros)
    assert nonzero == Runs.from_pages(ram.data - {*zeros})
    with pytest.raises(ValueError, match="beyond"):
        paging.bring_in(ram.mapping, Runs.from_pairs([(PAGES - 1, 2)]), swapped=True)
    with pytest.raises(ValueError, match="beyond"):
        paging.put_out(ram.mapping, Runs.from_pairs([(PAGES - 1, 2)]))


def test_punch_frees_memory_and_slots(ram: Ram) -> None:
    some = {page for page in ram.data if page % 2}
    ram.page_out({page for page in ram.data if page < PAGES // 2})
    paging.punch(ram.fd, ram.mapping.file_offset_bytes, Runs.from_pages(some))
    assert members(data_pages(ram.mapping)) == ram.data - some


def test_dropping_pages_keeps_them(ram: Ram) -> None:
    runs = Runs.from_pages(ram.data)
    paging.populate(ram.mapping, runs)
    paging.drop(ram.mapping, runs)
    assert all(ram.mapping.view(page, 1) == ram.pattern(page) for page in list(ram.data)[:50])


def test_the_best_way_that_works_is_chosen(swap: SwapArea) -> None:
    results = {result.name: result for result in probe_readers()}
    assert list(results) == ["pagemap", "cachestat", "mincore"]
    assert results["mincore"].supported
    best = next(result.name for result in results.values() if result.supported)
    assert choose_reader().name == best
    assert choose_reader("mincore").name == "mincore"
    with pytest.raises(KernelFeatureError, match="no way 'sniff'"):
        choose_reader("sniff")
    if results["pagemap"].degree is Degree.ABSENT:
        assert "kernel-patches" in results["pagemap"].reason
        with pytest.raises(KernelFeatureError, match="kernel-patches"):
            choose_reader("pagemap")


def test_pages_that_stay_in_cannot_confuse_the_keeper(ram: Ram) -> None:
    """A page mapped by someone else is left in by page-out and called resident by the reader."""
    with mmap.mmap(ram.fd, (FIRST_PAGE + PAGES) * PAGE_BYTES) as keeper:
        kept = sorted(ram.data)[::97]
        for page in kept:
            assert keeper[(FIRST_PAGE + page) * PAGE_BYTES] == ram.pattern(page)[0]
        runs = Runs.from_pages(ram.data)
        paging.populate(ram.mapping, runs)
        # Both mappings are of this process, but a page mapped twice is shared all the same.
        paging.page_out(ram.mapping, runs)
        swapped = members(CachestatReader().swapped(ram.mapping, ram.set_of(ram.data)))
    assert not swapped & set(kept)


def test_pages_from_another_processor_are_paged_out(swap: SwapArea, ram_fd: int) -> None:
    """What came in on one processor waits there in a batch; page-out runs on another."""
    processors = sorted(os.sched_getaffinity(0))
    need(len(processors) > 1, "needs two processors")
    try:
        ram = _filled_on_one_processor(ram_fd, processors)
        runs = Runs.from_pages(ram.data)
        os.sched_setaffinity(0, processors)
        assert paging.page_out(ram.mapping, runs, thorough=True) == 0
        assert os.sched_getaffinity(0) == {*processors}
        paging.drop(ram.mapping, runs)
        _page_in_here_and_out_there(ram, processors)
        ram.mapping.close()
    finally:
        os.sched_setaffinity(0, processors)


def _filled_on_one_processor(ram_fd: int, processors: list[int]) -> Ram:
    """RAM of which page-out on another processor leaves pages in.

    Now and then someone else empties the batch first: then once more, or the test shows nothing.
    """
    for _attempt in range(100):
        os.sched_setaffinity(0, processors[:1])
        ram = Ram(ram_fd, {*range(100)})
        os.sched_setaffinity(0, processors[1:2])
        runs = Runs.from_pages(ram.data)
        paging.populate(ram.mapping, runs)
        if paging.page_out(ram.mapping, runs):
            return ram
        ram.mapping.close()
        os.ftruncate(ram_fd, 0)
    pytest.fail("the other processor's batch was always emptied first")


def _page_in_here_and_out_there(ram: Ram, processors: list[int]) -> None:
    """`receive_payload`, `will_need` and `populate` empty the batch themselves."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=ours.sendall, args=(bytes(100 * PAGE_BYTES),))
        sender.start()
        os.sched_setaffinity(0, processors[:1])
        runs = Runs.from_pairs([(1000, 100)])
        offset = ram.mapping.file_offset_bytes
        receive_payload(theirs.fileno(), ram.fd, offset, runs, Scratch())
        sender.join()
    os.sched_setaffinity(0, processors[1:2])
    paging.populate(ram.mapping, runs)
    assert paging.page_out(ram.mapping, runs) == 0
