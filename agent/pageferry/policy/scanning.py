"""How a scan for written pages is divided among threads.

A scan walks page tables, 1.9 ms a GiB once they do not fit a processor's cache, and two of them lie
in the stop at the switchover. The kernel takes mmap_lock for reading only and each page table's own
lock (fs/proc/task_mmu.c, do_pagemap_scan), so parts of the guest can be walked side by side.
"""

from __future__ import annotations

from collections.abc import Iterator

from pageferry.model.blocks import PAGE_BYTES

PIECE_BYTES = 1 << 30
"""A piece takes some 2 ms at least, beside which handing it to a thread (0.1 ms) is little."""

WORD_PAGES = 64
"""Pages in one word of a set of pages (native/pageset.c): what threads must not share."""

MOST_THREADS = 32
"""More have not been tried, and the guest's own vCPUs have stopped: the processors are free."""


def scan_threads(processors: int) -> int:
    """Threads for the scans of one guest on a host where this process may use *processors*."""
    return max(1, min(MOST_THREADS, processors))


def scan_pieces(start: int, end: int, first_page: int) -> Iterator[tuple[int, int, int]]:
    """Cut the addresses from *start* to *end* (exclusive, whole pages), *first_page* of the block
    being at *start*. Yields start, end and first page of each piece.

    All but the first begin at a page of the block that is a multiple of a whole GiB's, so that
    no two of them share a word of a set of pages.
    """
    piece_pages = PIECE_BYTES // PAGE_BYTES
    while start < end:
        pages = piece_pages - first_page % piece_pages
        piece_end = min(end, start + pages * PAGE_BYTES)
        yield start, piece_end, first_page
        start, first_page = piece_end, first_page + pages
