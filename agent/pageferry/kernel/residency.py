"""Who is swapped: the residency of a RAM file's pages, by one of three ways behind one interface.

=========== ============================ ========================================================
way         needs                        gives
=========== ============================ ========================================================
pagemap     kernel-patches/              exact, with the order of the swap slots
cachestat   Linux 6.5                    exact; no slot order
mincore     nothing                      approximate: what is in the swap cache counts as resident
=========== ============================ ========================================================

All look at the file or at the agent's own mapping, never at QEMU's page tables, so they work while
QEMU's range is write-protected. None faults a page in. Holes always come from SEEK_DATA: a page
that is neither present nor swapped in a page table may still be cached.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pageferry.kernel import paging
from pageferry.kernel._native import ffi, lib
from pageferry.kernel.errors import check
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import PageSet, Runs
from pageferry.kernel.probe_result import Degree, ProbeResult
from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.errors import KernelFeatureError
from pageferry.model.residency import ResidencyBytes

BLOCK_BYTES = 512
"""The unit of st_blocks (inode(7)), whatever the file system's own is."""

COLD_BATCH_PAGES = 256
"""Pages of one slot-ordered batch: 1 MiB, the least page-in window there is."""


class ResidencyReader(Protocol):
    """One way to tell swapped pages from resident ones."""

    @property
    def name(self) -> str:
        """pagemap, cachestat or mincore."""

    @property
    def sees_swap_cache(self) -> bool:
        """Whether a page that was read ahead into the swap cache still counts as swapped."""

    def swapped(self, mapping: RamMapping, within: PageSet) -> PageSet:
        """Those pages of *within* (data pages of the mapping) that lie in swap."""

    def evicted_in(self, mapping: RamMapping, runs: Runs) -> Runs:
        """Those pages of *runs* that lie in swap right now. Cheap enough for every batch."""

    def cold_order(
        self, mapping: RamMapping, swapped: PageSet, batch_pages: int = COLD_BATCH_PAGES
    ) -> list[Runs] | None:
        """*swapped* in batches by swap slot, so that reading them is sequential on the device.

        None when the slots are not known. Pages that have come in meanwhile make up the last
        batches.
        """


class _RunReader:
    """What the readers share: each finds swapped pages among runs."""

    sees_swap_cache = True

    def swapped(self, mapping: RamMapping, within: PageSet) -> PageSet:
        found = PageSet(mapping.pages)
        found.add_runs(self.evicted_in(mapping, within.runs()))
        return found

    def evicted_in(self, mapping: RamMapping, runs: Runs) -> Runs:
        raise NotImplementedError

    def cold_order(
        self, mapping: RamMapping, swapped: PageSet, batch_pages: int = COLD_BATCH_PAGES
    ) -> list[Runs] | None:
        return None


class CachestatReader(_RunReader):
    """By cachestat(2), halving ranges of which a part is swapped. Exact."""

    name = "cachestat"

    def evicted_in(self, mapping: RamMapping, runs: Runs) -> Runs:
        """See `ResidencyReader`. Raises PermissionError when the file is not ours to write."""
        return _new_runs(
            lambda out: lib.pf_cachestat_swapped(
                mapping.fd, mapping.file_offset_bytes, runs._native, out
            ),
            "ask cachestat",
        )


class MincoreReader(_RunReader):
    """By mincore(2). Approximate: pages in the swap cache count as resident."""

    name = "mincore"
    sees_swap_cache = False

    def evicted_in(self, mapping: RamMapping, runs: Runs) -> Runs:
        """See `ResidencyReader`."""
        with mapping.use() as base:
            return _new_runs(
                lambda out: lib.pf_mincore_absent(base, mapping.pages, runs._native, out),
                "ask mincore",
            )


class PagemapReader(_RunReader):
    """By /proc/self/pagemap of a kernel that reports swapped shared pages. Exact, with slots."""

    name = "pagemap"

    def evicted_in(self, mapping: RamMapping, runs: Runs) -> Runs:
        """See `ResidencyReader`."""
        with _own_pagemap() as pagemap_fd, mapping.use() as base:
            return _new_runs(
                lambda out: lib.pf_pagemap_swapped(
                    pagemap_fd, base, mapping.pages, runs._native, out
                ),
                "read pagemap",
            )

    def cold_order(
        self, mapping: RamMapping, swapped: PageSet, batch_pages: int = COLD_BATCH_PAGES
    ) -> list[Runs] | None:
        """See `ResidencyReader`. Slots are visible with CAP_SYS_ADMIN only: None without."""
        runs = swapped.runs()
        numbers = ffi.new("uint64_t **")
        length = ffi.new("size_t *")
        located = ffi.new("size_t *")
        with _own_pagemap() as pagemap_fd, mapping.use() as base:
            error = lib.pf_pagemap_slot_order(
                pagemap_fd, base, mapping.pages, runs._native, numbers, length, located
            )
        check(error, "read pagemap")
        ordered = ffi.gc(numbers[0], lib.pf_free)
        if located[0] < length[0]:
            return None
        batches = _batches_of(ordered, length[0], batch_pages)
        seen = PageSet(mapping.pages)
        for batch in batches:
            seen.add_runs(batch)
        rest = swapped.copy()
        rest.discard_all(seen)
        return batches + list(rest.runs().pieces(batch_pages))


class _own_pagemap:  # noqa: N801 - used as a context manager only
    """A descriptor of /proc/self/pagemap for the length of a context."""

    def __enter__(self) -> int:
        self._fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        return self._fd

    def __exit__(self, *_exception: object) -> None:
        os.close(self._fd)


def _new_runs(call: Callable[[Any], int], action: str) -> Runs:
    out = ffi.new("struct pf_runs **")
    check(call(out), action)
    return Runs(out[0])


def _batches_of(ordered: Any, length: int, batch_pages: int) -> list[Runs]:
    batches = []
    for first in range(0, length, batch_pages):
        count = min(batch_pages, length - first)
        out = ffi.new("struct pf_runs **")
        check(lib.pf_runs_from_pages(ordered + first, count, out), "sort pages")
        batches.append(Runs(out[0]))
    return batches


def data_pages(mapping: RamMapping) -> PageSet:
    """The pages that exist, resident or swapped; the others are holes. By SEEK_DATA."""
    found = PageSet(mapping.pages)
    check(
        lib.pf_data_pages(mapping.fd, mapping.file_offset_bytes, mapping.pages, found._native),
        "look for data and holes",
    )
    return found


def data_among(mapping: RamMapping, within: PageSet) -> PageSet:
    """Those pages of *within* that exist. Costs by what is in *within*, not by the block's size."""
    found = PageSet(mapping.pages)
    check(
        lib.pf_data_among(mapping.fd, mapping.file_offset_bytes, within._native, found._native),
        "look for data and holes",
    )
    return found


def allocated_pages(mapping: RamMapping) -> int:
    """Pages that the whole file has now, resident or swapped, in one call (st_blocks).

    Exact for shmem: fstat(2) settles the count first (shmem_getattr, mm/shmem.c). It includes pages
    that SEEK_DATA does not call data (fallocated and never written).
    """
    return os.fstat(mapping.fd).st_blocks * BLOCK_BYTES // PAGE_BYTES


def residency(mapping: RamMapping, reader: ResidencyReader) -> tuple[PageSet, PageSet]:
    """The pages that exist, and those of them that lie in swap: ``(data, swapped)``."""
    data = data_pages(mapping)
    return data, reader.swapped(mapping, data)


def summary(data: PageSet, swapped: PageSet) -> ResidencyBytes:
    """Totals of what `residency` found."""
    data_count = data.count()
    swapped_count = swapped.count()
    return ResidencyBytes(
        resident_bytes=(data_count - swapped_count) * PAGE_BYTES,
        swapped_bytes=swapped_count * PAGE_BYTES,
        hole_bytes=(data.pages - data_count) * PAGE_BYTES,
    )


PROBE_PAGES = 64
"""Pages that a probe pages out: more than one, since a few may be in some processor's batch."""


def probe_readers() -> list[ProbeResult]:
    """Try each way once, best first, on a little memory of this process's own."""
    return [_probe_pagemap(), _probe_cachestat(), _probe_mincore()]


def choose_reader(forced: str | None = None) -> ResidencyReader:
    """The best way that works here, or the one named *forced*.

    Raises KernelFeatureError when that one does not work or does not exist.
    """
    readers: dict[str, ResidencyReader] = {
        reader.name: reader for reader in (PagemapReader(), CachestatReader(), MincoreReader())
    }
    if forced is not None and forced not in readers:
        raise KernelFeatureError(
            f"there is no way {forced!r} to tell residency",
            advice=f"choose one of {', '.join(readers)}",
        )
    for result in probe_readers():
        if result.supported and forced in (None, result.name):
            return readers[result.name]
        if result.name == forced:
            raise KernelFeatureError(
                f"residency cannot be told by {forced}: {result.reason}",
                advice="leave the way to pageferry, or choose another one",
            )
    raise KernelFeatureError(
        "no way to tell residency works here", advice="see `pageferry doctor` for each one's reason"
    )


WHAT_A_WAY_GIVES = {
    "cachestat": "exact, but cold pages are read in the order of their offsets",
    "mincore": "approximate, and cold pages are read in the order of their offsets",
}
WHAT_THE_PATCHES_GIVE = (
    "exact residency in one pass over the page tables, and cold pages read in the order of their"
    " swap slots"
)


def describe_way(results: Sequence[ProbeResult]) -> ProbeResult:
    """Which way is used unless a migration names another, and what a better one would give.

    *results* are those of `probe_readers`.
    """
    name = "residency"
    best = next((result for result in results if result.supported), None)
    if best is None:
        return ProbeResult(name, Degree.ABSENT, "no way to tell it works here")
    if best.name == PagemapReader.name:
        return ProbeResult(name, Degree.SUPPORTED, f"told by pagemap: {best.reason}")
    gives = WHAT_A_WAY_GIVES[best.name]
    return ProbeResult(
        name,
        Degree.SUPPORTED,
        f"told by {best.name}: {gives}; kernel-patches/ would give {WHAT_THE_PATCHES_GIVE}",
    )


class ProbeMemory:
    """A little shmem of this process's own to try things on."""

    def __init__(self) -> None:
        fd = os.memfd_create("pageferry-probe", os.MFD_CLOEXEC)
        try:
            os.pwrite(fd, b"pageferry probe!" * (PROBE_PAGES * PAGE_BYTES // 16), 0)
            self.mapping = RamMapping(fd, 0, PROBE_PAGES * PAGE_BYTES)
        finally:
            os.close(fd)
        self.runs = Runs.from_pairs([(0, PROBE_PAGES)])

    def __enter__(self) -> ProbeMemory:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.mapping.close()

    def page_out(self) -> None:
        """Try to page all of it out."""
        paging.put_out(self.mapping, self.runs, map_first=True)

    def pages_out(self) -> int:
        """How many of its pages are out, by another way than pagemap.

        Where cachestat(2) is missing or forbidden, pages in the swap cache do not count.
        """
        try:
            return CachestatReader().evicted_in(self.mapping, self.runs).pages
        except OSError:
            return MincoreReader().evicted_in(self.mapping, self.runs).pages


def swap_is_on() -> bool:
    """Whether this host has any active swap."""
    with open("/proc/swaps", encoding="utf-8") as swaps:
        return len(swaps.readlines()) > 1


def _probe_pagemap() -> ProbeResult:
    name = PagemapReader.name
    if not swap_is_on():
        return ProbeResult(name, Degree.ABSENT, "no swap is on, so it cannot be tried")
    try:
        with ProbeMemory() as memory:
            memory.page_out()
            found = PagemapReader().swapped(memory.mapping, data_pages(memory.mapping))
            if found.count():
                return ProbeResult(name, Degree.SUPPORTED, _slots_reason(memory, found))
            if not memory.pages_out():
                return ProbeResult(name, Degree.ABSENT, "nothing could be paged out to try it on")
    except OSError as error:
        return ProbeResult(name, Degree.DENIED, f"{error.strerror}; run as root")
    return ProbeResult(
        name,
        Degree.ABSENT,
        "this kernel's pagemap leaves swapped shared pages out; see kernel-patches",
    )


def _slots_reason(memory: ProbeMemory, swapped: PageSet) -> str:
    if PagemapReader().cold_order(memory.mapping, swapped) is None:
        return "it shows swapped shared pages, but no swap slots: those need CAP_SYS_ADMIN"
    return "it shows swapped shared pages and their swap slots"


def _probe_cachestat() -> ProbeResult:
    name = CachestatReader.name
    try:
        with ProbeMemory() as memory:
            CachestatReader().evicted_in(memory.mapping, memory.runs)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return ProbeResult(name, Degree.ABSENT, "cachestat(2) is missing; it needs Linux 6.5")
        return ProbeResult(name, Degree.DENIED, f"{error.strerror}; a seccomp filter?")
    return ProbeResult(name, Degree.SUPPORTED, "cachestat(2) answers")


def _probe_mincore() -> ProbeResult:
    name = MincoreReader.name
    try:
        with ProbeMemory() as memory:
            absent = MincoreReader().evicted_in(memory.mapping, memory.runs).pages
    except OSError as error:
        return ProbeResult(name, Degree.DENIED, f"{error.strerror}; a seccomp filter?")
    return ProbeResult(
        name, Degree.SUPPORTED, f"mincore(2) answers ({PROBE_PAGES - absent} pages in core)"
    )
