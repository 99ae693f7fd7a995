"""Bringing pages in, and putting them out again.

Each call takes a whole batch and releases the GIL. All raise ValueError for pages beyond the
mapping (before anything is done) and OSError for what the kernel refuses; after an OSError some of
the batch has been dealt with.
"""

from __future__ import annotations

from pageferry.kernel._native import ffi, lib
from pageferry.kernel.errors import check
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import Runs

MADV_DONTNEED = 4

ZERO_LEVEL: int = lib.pf_zero_best_level()
"""How this processor looks for pages of zeros (native/zero.c)."""


def will_need(mapping: RamMapping, runs: Runs) -> None:
    """Start reading the swapped pages of *runs*, all at once, without waiting for them."""
    with mapping.use() as base:
        check(lib.pf_read_ahead(base, mapping.pages, runs._native), "page in ahead")


def populate(mapping: RamMapping, runs: Runs) -> None:
    """Map all pages of *runs*, waiting for those that must be paged in.

    A hole among them becomes a clean page of zeroes, which reclaim drops again.
    """
    with mapping.use() as base:
        check(lib.pf_populate(base, mapping.pages, runs._native), "page in")


def bring_in(mapping: RamMapping, runs: Runs, *, swapped: bool) -> tuple[Runs, Runs]:
    """`populate` *runs*, and part them into pages that hold something and pages that are all zero.

    With *swapped* all reads are started first. Holes must not be among them. In one call, as a
    batch of the cold pass is small: each call lets another thread have the GIL, and waits for it.
    """
    nonzero, zero = ffi.new("struct pf_runs **"), ffi.new("struct pf_runs **")
    with mapping.use() as base:
        error = lib.pf_bring_in(
            base, mapping.pages, runs._native, swapped, ZERO_LEVEL, nonzero, zero
        )
    check(error, "page in")
    return Runs(nonzero[0]), Runs(zero[0])


def put_out(mapping: RamMapping, runs: Runs, *, map_first: bool = False) -> int:
    """`page_out` *runs* and `drop` them, in one call. Returns how many of their pages stayed in.

    With *map_first* they are mapped before, where they are in the page cache only.
    """
    stayed = ffi.new("uint64_t *")
    with mapping.use() as base:
        error = lib.pf_put_out(
            base,
            mapping.pages,
            mapping.fd,
            mapping.file_offset_bytes,
            runs._native,
            map_first,
            stayed,
        )
    check(error, "page out")
    return int(stayed[0])


map_present = populate
"""For pages that are in the page cache but not mapped, such as those written by `pwrite`."""


def page_out(mapping: RamMapping, runs: Runs, *, thorough: bool = False) -> int:
    """Page out *runs*, which `populate` has mapped. Returns how many of their pages stayed in.

    The kernel leaves in what another process maps: what the guest has touched, or a neighbour of
    that (fault-around, 64 KiB). It also leaves in, now and then, the last few pages that came in on
    another processor, which are still in a batch there; *thorough* gets those too, by going through
    all processors, at some 50 us for each: for the end of a migration rather than for each batch.
    Where cachestat(2) is missing the count is mincore's, which includes pages that are only in the
    swap cache.
    """
    with mapping.use() as base:
        check(lib.pf_page_out(base, mapping.pages, runs._native), "page out")
        stayed = _count_resident(mapping, runs)
        if stayed and thorough:
            check(lib.pf_page_out_everywhere(base, mapping.pages, runs._native), "page out")
            stayed = _count_resident(mapping, runs)
    return stayed


def drop(mapping: RamMapping, runs: Runs) -> None:
    """Take *runs* out of this process's page tables; the pages stay in the page cache."""
    with mapping.use() as base:
        check(lib.pf_advise(base, mapping.pages, runs._native, MADV_DONTNEED), "unmap pages")


def punch(fd: int, file_offset_bytes: int, runs: Runs) -> None:
    """Make *runs* of the file at *file_offset_bytes* holes; frees their memory or swap slots."""
    check(lib.pf_punch(fd, file_offset_bytes, runs._native), "punch holes into guest RAM")


def _count_resident(mapping: RamMapping, runs: Runs) -> int:
    resident = ffi.new("uint64_t *")
    with mapping.use() as base:
        error = lib.pf_count_resident(
            base, mapping.pages, mapping.fd, mapping.file_offset_bytes, runs._native, resident
        )
    check(error, "count resident pages")
    return int(resident[0])
