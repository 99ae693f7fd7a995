"""The cold pass on real swap: what it brings in goes out again, whichever way it looks."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from pageferry.kernel import paging
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import Runs
from pageferry.kernel.residency import CachestatReader, MincoreReader, ResidencyReader
from pageferry.migration.channel import Channel
from pageferry.migration.guest_ram import CarriedBlock
from pageferry.migration.progress import Progress
from pageferry.migration.sending import RamSender
from pageferry.model.blocks import PAGE_BYTES, RamBlock
from pageferry.testing.lab.swap import SwapArea

PAGES = 2048
WINDOW_BYTES = 1 << 20


def swapped_ram(fd: int) -> RamMapping:
    """All pages written, and paged out but for a few that the kernel leaves in now and then."""
    os.ftruncate(fd, PAGES * PAGE_BYTES)
    for page in range(PAGES):
        os.pwrite(
            fd, page.to_bytes(4, "little", signed=False) * (PAGE_BYTES // 4), page * PAGE_BYTES
        )
    mapping = RamMapping(fd, 0, PAGES * PAGE_BYTES)
    everything = Runs.from_pages(range(PAGES))
    paging.populate(mapping, everything)
    paging.page_out(mapping, everything, thorough=True)
    paging.drop(mapping, everything)
    return mapping


@pytest.mark.parametrize("reader", [CachestatReader(), MincoreReader()], ids=lambda each: each.name)
def test_what_was_read_ahead_is_paged_out_again(
    reader: ResidencyReader, swap: SwapArea, ram_fd: int
) -> None:
    """mincore calls a page resident once it is in the swap cache, as one is that was read ahead."""
    mapping = swapped_ram(ram_fd)
    everything = Runs.from_pages(range(PAGES))
    before = CachestatReader().evicted_in(mapping, everything).pages
    assert before > 0.9 * PAGES
    ours, theirs = socket.socketpair()

    def drain() -> None:
        while theirs.recv(1 << 20):
            pass

    thread = threading.Thread(target=drain)
    thread.start()
    progress = Progress("1", "guest", 0)
    with ours:
        block = CarriedBlock(RamBlock("mem0", PAGES * PAGE_BYTES), mapping, (), 0, 0)
        sender = RamSender([block], [Channel(ours, 0)], reader, progress)
        sender.send_cold(1, [(0, everything)], WINDOW_BYTES)
    thread.join()
    theirs.close()
    assert sender.settled[0].count() == PAGES
    assert CachestatReader().evicted_in(mapping, everything).pages > 0.9 * PAGES
    mapping.close()
