"""Sets and runs of pages, held and combined in C.

`PageSet` is a bitmap over one RAM block, `Runs` an immutable list of runs. Both hold pages of
4096 bytes, numbered from the start of the block. All bulk work happens in C with the GIL released;
iteration is for tests and rare paths.

The GIL being released, two threads may be inside one set at the same time. Any number may read, but
a thread that changes a set needs it for itself: nothing crashes otherwise, but changes get lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pageferry.kernel._native import ffi, lib
from pageferry.kernel.errors import check

MAX_PAGES = 1 << 52
"""More than any address space has; keeps what is computed from page numbers within 64 bits."""


class Runs:
    """Runs of pages, ascending and disjoint; runs that touch have been joined.

    Made by `PageSet`, by `from_list` from what a peer sent, or by `from_pairs`. Immutable, so it
    may be shared between threads. Two that hold the same pages are equal.
    """

    __slots__ = ("_native", "end_page", "pages")

    def __init__(self, native: Any) -> None:
        """Take over *native*, a ``struct pf_runs *``; for this package's own use."""
        self._native = ffi.gc(native, lib.pf_runs_destroy)
        self.pages: int = native.pages
        """Number of pages in all runs."""
        last = native.items[native.length - 1] if native.length else None
        self.end_page: int = last.start + last.count if last is not None else 0
        """One past the last page; 0 when there is none."""

    @classmethod
    def from_list(cls, flat: list[int], limit_pages: int) -> Runs:
        """The runs that the wire form *flat* describes: ``[gap0, count0, gap1, count1, ...]``.

        A gap is the distance from the end of the run before (the first: from page 0). *flat* may
        come from a peer: raises ValueError unless it is pairs of integers, no gap is negative, each
        count is at least 1, and no run ends beyond *limit_pages*.
        """
        try:
            values = ffi.new("uint64_t[]", flat)
        except (OverflowError, TypeError) as error:
            raise ValueError(f"not a list of gaps and counts: {error}") from error
        out = ffi.new("struct pf_runs **")
        if lib.pf_runs_from_gaps(values, len(flat), limit_pages, out):
            raise ValueError(f"not pairs of gap and count within {limit_pages} pages")
        return cls(out[0])

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[int, int]]) -> Runs:
        """The runs ``(start_page, page_count)``, ascending and disjoint; ValueError otherwise."""
        flat: list[int] = []
        end = 0
        for start, count in pairs:
            flat += (start - end, count)
            end = start + count
        return cls.from_list(flat, MAX_PAGES)

    @classmethod
    def from_pages(cls, pages: Iterable[int]) -> Runs:
        """The runs that the page numbers *pages* (distinct, in any order) make up."""
        numbers = ffi.new("uint64_t[]", list(pages))
        out = ffi.new("struct pf_runs **")
        check(lib.pf_runs_from_pages(numbers, len(numbers), out), "sort pages")
        return cls(out[0])

    def to_list(self) -> list[int]:
        """The wire form, as `from_list` takes it."""
        values = 2 * len(self)
        flat = ffi.new("uint64_t[]", max(values, 1))
        lib.pf_runs_to_gaps(self._native, flat)
        result: list[int] = ffi.unpack(flat, values)
        return result

    @property
    def first_page(self) -> int:
        """The lowest page; 0 when there is none."""
        return int(self._native.items[0].start) if len(self) else 0

    def minus(self, other: Runs) -> Runs:
        """These pages without those of *other*."""
        out = ffi.new("struct pf_runs **")
        check(lib.pf_runs_minus(self._native, other._native, out), "subtract runs")
        return Runs(out[0])

    def cut(self, first: int, max_pages: int) -> Runs:
        """At most *max_pages* of these pages, those before the *first*-th left out."""
        out = ffi.new("struct pf_runs **")
        check(lib.pf_runs_cut(self._native, first, max_pages, out), "cut runs")
        return Runs(out[0])

    def pieces(self, max_pages: int) -> Iterator[Runs]:
        """These pages in order, in pieces of *max_pages* (the last may be shorter)."""
        if max_pages < 1:
            raise ValueError("a piece has at least one page")
        for first in range(0, self.pages, max_pages):
            yield self.cut(first, max_pages)

    def __len__(self) -> int:
        return int(self._native.length)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        items = self._native.items
        for index in range(len(self)):
            yield items[index].start, items[index].count

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Runs):
            return NotImplemented
        return self.pages == other.pages and self.to_list() == other.to_list()

    def __hash__(self) -> int:
        return hash((self.pages, self.end_page))

    def __repr__(self) -> str:
        return f"<Runs of {self.pages} pages, {len(self)} runs>"


class PageSet:
    """A set of the pages of one RAM block of *pages* pages; starts empty.

    Methods that take a range or runs raise ValueError when those do not lie within the block, and
    the same for a set of another size; the set is then unchanged.
    """

    __slots__ = ("_native", "pages")

    def __init__(self, pages: int) -> None:
        if not 0 <= pages <= MAX_PAGES:
            raise ValueError(f"a set of {pages} pages")
        out = ffi.new("struct pf_pageset **")
        check(lib.pf_pageset_create(pages, out), "make a page set")
        self._native = ffi.gc(out[0], lib.pf_pageset_destroy)
        self.pages = pages
        """Size of the block in pages, not of the set: that is `count`."""

    def add(self, start: int, count: int) -> None:
        """Add *count* pages from *start* on."""
        self._check_range(start, count)
        check(lib.pf_pageset_add(self._native, start, count), "add pages")

    def discard(self, start: int, count: int) -> None:
        """Take *count* pages from *start* on out, where they are in."""
        self._check_range(start, count)
        check(lib.pf_pageset_discard(self._native, start, count), "discard pages")

    def add_runs(self, runs: Runs) -> None:
        """Add all pages of *runs*."""
        check(lib.pf_pageset_add_runs(self._native, runs._native), "add runs")

    def discard_runs(self, runs: Runs) -> None:
        """Take all pages of *runs* out, where they are in."""
        check(lib.pf_pageset_discard_runs(self._native, runs._native), "discard runs")

    def add_all(self, other: PageSet) -> None:
        """Union, in place."""
        check(lib.pf_pageset_add_all(self._native, other._native), "unite sets")

    def discard_all(self, other: PageSet) -> None:
        """Difference, in place."""
        check(lib.pf_pageset_discard_all(self._native, other._native), "subtract sets")

    def keep_all(self, other: PageSet) -> None:
        """Intersection, in place."""
        check(lib.pf_pageset_keep_all(self._native, other._native), "intersect sets")

    def keep_long_runs(self, max_runs: int) -> None:
        """Take the shortest runs out, so that at most *max_runs* are left."""
        check(lib.pf_pageset_keep_long_runs(self._native, max_runs), "drop short runs")

    def copy(self) -> PageSet:
        """Another set of the same pages."""
        twin = PageSet(self.pages)
        twin.add_all(self)
        return twin

    def clear(self) -> None:
        """Take all pages out."""
        lib.pf_pageset_clear(self._native)

    def count(self) -> int:
        """Number of pages in the set."""
        return self.count_range(0, self.pages)

    def count_range(self, start: int, count: int) -> int:
        """Number of pages in the set among the *count* from *start* on."""
        self._check_range(start, count)
        out = ffi.new("uint64_t *")
        check(lib.pf_pageset_count_range(self._native, start, count, out), "count pages")
        return int(out[0])

    def next(self, from_page: int) -> tuple[int, int] | None:
        """The first run at or after *from_page*, as (start, count); None when there is none.

        When *from_page* lies amid a run, the rest of that run.
        """
        run = ffi.new("struct pf_run *")
        if lib.pf_pageset_next(self._native, from_page, run):
            return None
        return run.start, run.count

    def take(self, from_page: int, max_pages: int, max_runs: int) -> Runs:
        """The next runs at or after *from_page*, of at most *max_pages* pages and *max_runs* runs.

        The first and the last run may be parts of longer ones. Empty at the end of the set. The
        pages stay in the set; the next call wants the result's ``end_page``.
        """
        return self._take(from_page, self.pages, max_pages, max_runs)

    def runs(self) -> Runs:
        """All pages of the set."""
        return self._take(0, self.pages, self.pages, self.pages)

    def slice(self, start: int, count: int) -> Runs:
        """The pages of the set among the *count* from *start* on."""
        self._check_range(start, count)
        return self._take(start, start + count, count, count)

    def _take(self, start: int, limit: int, max_pages: int, max_runs: int) -> Runs:
        out = ffi.new("struct pf_runs **")
        check(
            lib.pf_pageset_take(self._native, start, limit, max_pages, max_runs, out), "take runs"
        )
        return Runs(out[0])

    def _check_range(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.pages:
            raise ValueError(f"{count} pages from page {start} on, in a block of {self.pages}")

    def __bool__(self) -> bool:
        return bool(lib.pf_pageset_any(self._native))

    def __contains__(self, page: int) -> bool:
        return page >= 0 and bool(lib.pf_pageset_has(self._native, page))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PageSet):
            return NotImplemented
        return bool(lib.pf_pageset_equal(self._native, other._native))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<PageSet of {self.count()} in {self.pages} pages>"


def note_sent(sent: PageSet, settled: PageSet, nonzero: Runs, zero: Runs) -> None:
    """Add *nonzero* to *sent* and take *zero* out of it; add both to *settled*."""
    error = lib.pf_pageset_note_sent(sent._native, settled._native, nonzero._native, zero._native)
    check(error, "note what was sent")
