"""Bringing pages in, and putting them out again.

Each call takes a whole batch and releases the GIL. All raise ValueError for pages beyond the
mapping (before anything is done) and OSError for what the kernel refuses; after an OSError some of
the batch has been dealt with.
"""

from __future__ import annotations

import errno

from pageferry.kernel._native import ffi, lib
from pageferry.kernel.errors import check
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import Runs

MADV_WILLNEED = 3
MADV_DONTNEED = 4
MADV_POPULATE_READ = 22  # Linux 5.14


def will_need(mapping: RamMapping, runs: Runs) -> None:
    """Start reading the swapped pages of *runs*, all at once, without waiting for them."""
    with mapping.use() as base:
        check(lib.pf_advise(base, mapping.pages, runs._native, MADV_WILLNEED), "page in ahead")
    lib.pf_drain_batch()


def populate(mapping: RamMapping, runs: Runs) -> None:
    """Map all pages of *runs*, waiting for those that must be paged in.

    A hole among them becomes a clean page of zeroes, which reclaim drops again.
    """
    with mapping.use() as base:
        error = lib.pf_advise(base, mapping.pages, runs._native, MADV_POPULATE_READ)
    lib.pf_drain_batch()
    check(error, "page in")


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
    with mapping.use() as base:
        resident = ffi.new("uint64_t *")
        error = lib.pf_cachestat_resident(
            mapping.fd, mapping.file_offset_bytes, runs._native, resident
        )
        if error not in (errno.ENOSYS, errno.EPERM):
            check(error, "count resident pages")
            return int(resident[0])
        out = ffi.new("struct pf_runs **")
        check(lib.pf_mincore_absent(base, mapping.pages, runs._native, out), "count pages in core")
        return runs.pages - Runs(out[0]).pages
