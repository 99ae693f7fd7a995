"""Runs in a test guest: every way to tell residency, and the cold pass, against what was done.

The truth is this program's own: it wrote the pages, paged out some of them in an order of its own,
and left the rest. That as many are out as it thinks is what smaps says, which knows nothing of the
pagemap. Swap is on two RAM disks: what is paged out leaves the swap cache at once, so that even
mincore(2) must agree. Where slots matter, the block layer's trace tells which were read, and when.

The argument is ``patched`` or ``unpatched``. The report is TAP.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from pageferry.kernel import paging, procfs
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import PageSet, Runs
from pageferry.kernel.residency import (
    COLD_BATCH_PAGES,
    CachestatReader,
    MincoreReader,
    PagemapReader,
    ResidencyReader,
    choose_reader,
    data_pages,
    probe_readers,
    residency,
)
from pageferry.migration.channel import Channel
from pageferry.migration.feeder import cold_batch_pages
from pageferry.migration.guest_ram import CarriedBlock
from pageferry.migration.progress import Progress
from pageferry.migration.sending import RamSender
from pageferry.model.blocks import PAGE_BYTES, RamBlock

PAGES = 4096
FIRST_PAGE = 5  # of the block within its file
WINDOW_BYTES = 1 << 20
TRACING = Path("/sys/kernel/tracing")
UNPRIVILEGED = 65534
SECTORS_PER_PAGE = 8
PAGE_OUT_TRIES = 100


class CheckError(Exception):
    """A check found something else than it should."""


def import_all() -> None:
    """Import what is imported late otherwise, so that it is found in the image."""
    for name in ("encodings.idna", "linecache", "tracemalloc", "stringprep"):
        __import__(name)


class Ram:
    """A RAM file of which *data* was written and *swapped* paged out; the others are holes."""

    def __init__(
        self, data: Iterable[int], swapped: Iterable[int], *, shuffle: bool = True
    ) -> None:
        self.data = set(data)
        self.swapped = set(swapped)
        self.fd = os.memfd_create("guest-ram")
        os.ftruncate(self.fd, (FIRST_PAGE + PAGES) * PAGE_BYTES)
        for page in self.data:
            os.pwrite(self.fd, pattern(page), (FIRST_PAGE + page) * PAGE_BYTES)
        self.mapping = RamMapping(self.fd, FIRST_PAGE * PAGE_BYTES, PAGES * PAGE_BYTES)
        self._page_out(shuffle=shuffle)

    def _page_out(self, *, shuffle: bool) -> None:
        """In pieces, in an order of our own: then slots are not in the order of offsets."""
        pieces = list(Runs.from_pages(self.swapped).pieces(64))
        if shuffle:
            random.Random(7).shuffle(pieces)
        for runs in pieces:
            paging.populate(self.mapping, runs)
            paging.page_out(self.mapping, runs, thorough=True)
        for _ in range(PAGE_OUT_TRIES):
            if self.pages_in_swap() == len(self.swapped):
                break
            runs = Runs.from_pages(self.swapped)
            paging.page_out(self.mapping, runs, thorough=True)
        expect(self.pages_in_swap(), len(self.swapped), "pages in swap by smaps")
        paging.drop(self.mapping, Runs.from_pages(self.data))

    def pages_in_swap(self) -> int:
        """Of the mapping, by smaps."""
        status = os.fstat(self.fd)
        return sum(
            detail.sizes_bytes["Swap"] // PAGE_BYTES
            for detail in procfs.smaps_of(os.getpid())
            if detail.entry.inode == status.st_ino
        )

    def __enter__(self) -> Ram:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back."""
        self.mapping.close()
        os.close(self.fd)


def pattern(page: int) -> bytes:
    """What a page holds: never zeros, which newer kernels do not write to swap."""
    return struct.pack("<Q", page * 2654435761 % 2**63 + 1) * (PAGE_BYTES // 8)


def expect(found: object, right: object, what: str) -> None:
    """Raise CheckError unless both are the same."""
    if found != right:
        raise CheckError(f"{what}: {str(found)[:300]}, not {str(right)[:300]}")


def members(runs: Iterable[tuple[int, int]]) -> set[int]:
    """The pages of some runs."""
    return {page for start, count in runs for page in range(start, start + count)}


def readers() -> list[ResidencyReader]:
    """The ways that work here."""
    supported = {result.name for result in probe_readers() if result.supported}
    ways: tuple[ResidencyReader, ...] = (PagemapReader(), CachestatReader(), MincoreReader())
    return [way for way in ways if way.name in supported]


def layouts() -> dict[str, tuple[set[int], set[int]]]:
    """Pages written and of those paged out, by the name of the case."""
    stream = random.Random(3)
    everything = set(range(PAGES))
    some = {page for page in everything if stream.random() < 0.7} - set(range(1000, 1700))
    return {
        "all resident": (everything, set()),
        "all swapped": (everything, everything),
        "all holes": (set(), set()),
        "one page swapped": ({9}, {9}),
        "every second page swapped": (everything, set(range(0, PAGES, 2))),
        "mixed": (some, {page for page in some if stream.random() < 0.5 or page > 3000}),
    }


def check_ways_agree() -> None:
    """Every way that works says what was done, and looking changes nothing."""
    for name, (data, swapped) in layouts().items():
        ram = Ram(data, swapped)
        for reader in readers():
            found_data, found = residency(ram.mapping, reader)
            expect(members(found_data.runs()), data, f"{name}: data")
            expect(members(found.runs()), swapped, f"{name}: swapped by {reader.name}")
            asked = Runs.from_pages(page for page in sorted(data) if page % 3)
            evicted = members(reader.evicted_in(ram.mapping, asked))
            expect(evicted, {page for page in swapped if page % 3}, f"{name}: by {reader.name}")
        expect(ram.pages_in_swap(), len(swapped), f"{name}: pages in swap after looking")
        ram.close()


def check_pages_that_are_mapped() -> None:
    """With page tables for some of it: by the agent itself, and by another mapping."""
    data, swapped = layouts()["mixed"]
    ram = Ram(data, swapped)
    with RamMapping(ram.fd, FIRST_PAGE * PAGE_BYTES, PAGES * PAGE_BYTES) as other:
        paging.populate(ram.mapping, Runs.from_pages(data - swapped))
        paging.populate(other, Runs.from_pages(sorted(data - swapped)[::5]))
        for reader in readers():
            found = reader.swapped(ram.mapping, data_pages(ram.mapping))
            expect(members(found.runs()), swapped, f"swapped by {reader.name}")
    ram.close()


def slot_of(entry: int) -> tuple[int, int]:
    """Swap type and offset of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst)."""
    return entry & 31, (entry & (1 << 55) - 1) >> 5


def slots(ram: Ram) -> dict[int, tuple[int, int]]:
    """Where each swapped page lies, read from pagemap one by one, through C nowhere."""
    status = os.fstat(ram.fd)
    (entry,) = (one for one in procfs.maps_of(os.getpid()) if one.inode == status.st_ino)
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        found = {}
        for page in ram.swapped:
            pagemap.seek((entry.start // PAGE_BYTES + page) * 8)
            found[page] = slot_of(struct.unpack("<Q", pagemap.read(8))[0])
        return found


def check_cold_order() -> None:
    """Every swapped page once, by swap type and offset, and not by chance the order of offsets."""
    data, swapped = layouts()["mixed"]
    ram = Ram(data, swapped)
    where = slots(ram)
    expect({kind for kind, _offset in where.values()}, {0, 1}, "swap areas in use")
    expect(len(set(where.values())), len(swapped), "different slots")
    pages = PageSet(PAGES)
    pages.add_runs(Runs.from_pages(swapped))
    batches = PagemapReader().cold_order(ram.mapping, pages, batch_pages=16)
    if batches is None:
        raise CheckError("no order although slots are visible")
    order = [page for batch in batches for page in sorted(members(batch), key=where.__getitem__)]
    expect(sorted(order), sorted(swapped), "pages in the order")
    expect([where[page] for page in order], sorted(where.values()), "the order of slots")
    if order == sorted(order):
        raise CheckError("slots are in the order of offsets: this shows nothing")
    ram.close()


def check_unprivileged() -> None:
    """Without CAP_SYS_ADMIN swapped pages are seen, but no slots: then there is no order."""
    data, swapped = layouts()["mixed"]
    ram = Ram(data, swapped)
    # So that a process that gives up its privileges may still look at itself.
    Path("/proc/sys/fs/suid_dumpable").write_text("1")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setresgid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
            os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
            with RamMapping(ram.fd, FIRST_PAGE * PAGE_BYTES, PAGES * PAGE_BYTES) as mapping:
                found = PagemapReader().swapped(mapping, data_pages(mapping))
                expect(members(found.runs()), swapped, "swapped, unprivileged")
                expect(PagemapReader().cold_order(mapping, found), None, "order, unprivileged")
            status = 0
        except BaseException:  # noqa: BLE001 - the parent tells that it failed
            traceback.print_exc()
        finally:
            os._exit(status)
    expect(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0, "the unprivileged process")
    ram.close()


class ReadTrace:
    """Which slots are read from the swap areas, and in which order, within a context."""

    def __enter__(self) -> ReadTrace:
        (TRACING / "trace").write_text("")
        (TRACING / "events/block/block_bio_queue/enable").write_text("1")
        return self

    def __exit__(self, *_exception: object) -> None:
        (TRACING / "events/block/block_bio_queue/enable").write_text("0")
        self.slots = [
            (int(minor), slot)
            for minor, sector, count in re.findall(
                r"block_bio_queue: \d+,(\d+) R\w* (\d+) \+ (\d+)", (TRACING / "trace").read_text()
            )
            for slot in range(
                int(sector) // SECTORS_PER_PAGE, (int(sector) + int(count)) // SECTORS_PER_PAGE
            )
        ]


def cold_pass(ram: Ram, reader: ResidencyReader) -> ReadTrace:
    """The source's own cold pass, into a socket whose other end throws everything away."""
    pages = PageSet(PAGES)
    pages.add_runs(Runs.from_pages(ram.swapped))
    batches = reader.cold_order(ram.mapping, pages) or [pages.runs()]
    block = CarriedBlock(RamBlock("ram", PAGES * PAGE_BYTES), ram.mapping, (), 0, 0)
    progress = Progress(migration_id="", guest="", started_ns=0)
    ours, theirs = socket.socketpair()
    received = 0

    def drain() -> None:
        nonlocal received
        while part := theirs.recv(1 << 20):
            received += len(part)

    thread = threading.Thread(target=drain)
    thread.start()
    with ours, ReadTrace() as trace:
        sender = RamSender([block], [Channel(ours, 0)], reader, progress)
        sender.send_cold(1, [(0, batch) for batch in batches], WINDOW_BYTES)
    thread.join()
    theirs.close()
    if received < len(ram.swapped) * PAGE_BYTES:
        raise CheckError(f"{received} bytes were sent of {len(ram.swapped)} pages")
    expect(members(sender.sent[0].runs()), ram.swapped, "pages sent")
    return trace


def reads_one_too_many() -> bool:
    """Whether MADV_WILLNEED reads the page after the range as well, as Linux 6.1 does.

    It takes the end of the range for its last page (force_shm_swapin_readahead, mm/madvise.c).
    """
    with Ram(range(2), range(2)) as ram, ReadTrace() as trace:
        paging.will_need(ram.mapping, Runs.from_pages([0]))
    return len(trace.slots) > 1


def pages_read_beyond(ram: Ram, reader: ResidencyReader) -> set[int]:
    """Pages of *ram* that the cold pass may read early, and twice, by that fault of the kernel."""
    if not reads_one_too_many():
        return set()
    pages = PageSet(PAGES)
    pages.add_runs(Runs.from_pages(ram.swapped))
    batches = reader.cold_order(ram.mapping, pages) or [pages.runs()]
    pieces = [
        piece for batch in batches for piece in batch.pieces(cold_batch_pages(WINDOW_BYTES, 1))
    ]
    return {start + count for piece in pieces for start, count in piece} & ram.swapped


def expect_reads(trace: ReadTrace, beyond: set[int]) -> None:
    """Each page was read once, but for those that the kernel reads unasked: they may be twice."""
    extra = len(trace.slots) - PAGES
    if not 0 <= extra <= len(beyond):
        raise CheckError(
            f"{len(trace.slots)} reads of {PAGES} pages, {len(beyond)} of them unasked"
        )


def steps_back(read: list[tuple[int, int]], batch_pages: int) -> int:
    """How often a batch begins before the slots of the batch before it."""
    parts = [read[first : first + batch_pages] for first in range(0, len(read), batch_pages)]
    return sum(min(later) < max(earlier) for earlier, later in itertools.pairwise(parts))


def check_cold_pass_goes_by_slot() -> None:
    """Reads reach the swap areas in the order of slots, each page once, and all go out again."""
    everything = set(range(PAGES))
    ram = Ram(everything, everything)
    where = slots(ram)
    beyond = pages_read_beyond(ram, PagemapReader())
    trace = cold_pass(ram, PagemapReader())
    in_order = {where[page] for page in everything - beyond}
    read = [slot for slot in trace.slots if slot in in_order]
    expect(sorted(read), sorted(in_order), "slots read")
    expect_reads(trace, beyond)
    batch = {slot: n // COLD_BATCH_PAGES for n, slot in enumerate(sorted(where.values()))}
    batches = [batch[slot] for slot in read]
    expect(batches, sorted(batches), "order of batches")
    expect(ram.pages_in_swap(), PAGES, "pages in swap after the cold pass")
    ram.close()


def check_cold_pass_without_slots() -> None:
    """By offset instead: complete, each page once, and out again; it jumps about on the device."""
    everything = set(range(PAGES))
    ram = Ram(everything, everything)
    reader = next(way for way in readers() if way.name != "pagemap")
    beyond = pages_read_beyond(ram, reader)
    trace = cold_pass(ram, reader)
    expect_reads(trace, beyond)
    if steps_back(trace.slots, 256) < 4:
        raise CheckError(
            "offsets happen to be in the order of slots: the other check shows nothing"
        )
    expect(ram.pages_in_swap(), PAGES, "pages in swap after the cold pass")
    ram.close()


def check_probe_says_patched() -> None:
    """The probe finds the patch, and its way is the one that is used."""
    found = {result.name: result for result in probe_readers()}
    expect(found["pagemap"].supported, True, f"pagemap ({found['pagemap'].reason})")
    expect(choose_reader().name, "pagemap", "the way that is used")


def check_probe_says_unpatched() -> None:
    """Without the patch the next best way is used, and the reason names the patches."""
    found = {result.name: result for result in probe_readers()}
    expect(found["pagemap"].supported, False, "pagemap")
    if "kernel-patches" not in found["pagemap"].reason:
        raise CheckError(f"the reason is {found['pagemap'].reason!r}")
    best = "cachestat" if found["cachestat"].supported else "mincore"
    expect(choose_reader().name, best, "the way that is used")


CHECKS: dict[str, tuple[Callable[[], None], ...]] = {
    "patched": (
        check_probe_says_patched,
        check_ways_agree,
        check_pages_that_are_mapped,
        check_cold_order,
        check_unprivileged,
        check_cold_pass_goes_by_slot,
        check_cold_pass_without_slots,
    ),
    "unpatched": (
        check_probe_says_unpatched,
        check_ways_agree,
        check_pages_that_are_mapped,
        check_cold_pass_without_slots,
    ),
}


def main() -> int:
    """Run the checks; 0 when all pass."""
    checks = CHECKS[sys.argv[1]]
    failures = 0
    # Neighbours in swap must not come in unasked.
    Path("/proc/sys/vm/page-cluster").write_text("0")
    print("TAP version 13", f"1..{len(checks)}", sep="\n", flush=True)
    for number, check in enumerate(checks, 1):
        try:
            check()
        except Exception:  # noqa: BLE001 - reported, and the next one runs
            print("".join(f"# {line}\n" for line in traceback.format_exc().splitlines()), end="")
            failures += 1
            print("not ", end="")
        name = check.__name__.removeprefix("check_").replace("_", " ")
        print(f"ok {number} {name}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
