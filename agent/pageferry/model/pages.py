"""A set of pages as sorted runs: slow and obvious, the reference for the bitmap in C.

Nothing on the data path uses it. The native page set and run list are held to it by property tests,
and whoever wonders what one of their methods means finds it here in a line or two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Run = tuple[int, int]
"""(first page, number of pages), the number above 0."""


def runs_of(pages: Iterable[int]) -> list[Run]:
    """The ascending, disjoint, longest runs that hold exactly *pages*."""
    runs: list[Run] = []
    for page in sorted(set(pages)):
        if runs and sum(runs[-1]) == page:
            start, count = runs[-1]
            runs[-1] = (start, count + 1)
        else:
            runs.append((page, 1))
    return runs


def to_flat(runs: Iterable[Run]) -> list[int]:
    """Runs as on the wire: ``[gap0, count0, ...]``, a gap from the end of the run before."""
    flat: list[int] = []
    end = 0
    for start, count in runs:
        flat += [start - end, count]
        end = start + count
    return flat


def from_flat(flat: list[int], limit_pages: int) -> list[Run]:
    """The runs of a flat list. Raises ValueError when it is none, or ends beyond *limit_pages*."""
    if len(flat) % 2:
        raise ValueError("odd number of gaps and counts")
    runs: list[Run] = []
    end = 0
    for gap, count in zip(flat[::2], flat[1::2], strict=True):
        if gap < 0 or count <= 0 or end + gap + count > limit_pages:
            raise ValueError(f"run of {count} pages after a gap of {gap} at page {end}")
        runs.append((end + gap, count))
        end += gap + count
    return runs


class ReferencePageSet:
    """Pages of a block of ``pages`` pages, with the methods of the native page set.

    Methods that take a range raise ValueError when it does not lie within the block, and then have
    changed nothing.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._members: set[int] = set()

    def add(self, start: int, count: int) -> None:
        """Add *count* pages from *start* on."""
        self._members |= set(self._range(start, count))

    def discard(self, start: int, count: int) -> None:
        """Take *count* pages from *start* on out, where they are in."""
        self._members -= set(self._range(start, count))

    def add_runs(self, runs: Iterable[Run]) -> None:
        """Add all pages of *runs*."""
        for start, count in runs:
            self.add(start, count)

    def discard_runs(self, runs: Iterable[Run]) -> None:
        """Take all pages of *runs* out."""
        for start, count in runs:
            self.discard(start, count)

    def add_all(self, other: ReferencePageSet) -> None:
        """Union, in place."""
        self._members |= other._members

    def discard_all(self, other: ReferencePageSet) -> None:
        """Difference, in place."""
        self._members -= other._members

    def keep_all(self, other: ReferencePageSet) -> None:
        """Intersection, in place."""
        self._members &= other._members

    def keep_long_runs(self, max_runs: int) -> None:
        """Take the shortest runs out, all of one length together, so that so many are left."""
        lengths = sorted((count for _start, count in self.runs()), reverse=True)
        too_short = lengths[max_runs] if len(lengths) > max_runs else 0
        for start, count in self.runs():
            if count <= too_short:
                self.discard(start, count)

    def copy(self) -> ReferencePageSet:
        """Another set of the same pages."""
        twin = ReferencePageSet(self.pages)
        twin._members = set(self._members)
        return twin

    def clear(self) -> None:
        """Take all pages out."""
        self._members.clear()

    def count(self) -> int:
        """Number of pages in the set."""
        return len(self._members)

    def count_range(self, start: int, count: int) -> int:
        """Number of those pages that are in the set."""
        return len(self._members.intersection(self._range(start, count)))

    def __bool__(self) -> bool:
        return bool(self._members)

    def __contains__(self, page: int) -> bool:
        return page in self._members

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._members))

    def runs(self) -> list[Run]:
        """All of it."""
        return runs_of(self._members)

    def take(self, from_page: int, max_pages: int, max_runs: int) -> list[Run]:
        """The next runs at or after *from_page*, of at most so many pages and runs.

        The first and the last run may be parts of longer ones. The set keeps them.
        """
        members = [page for page in self if page >= from_page][:max_pages]
        return runs_of(members)[:max_runs]

    def next(self, from_page: int) -> Run | None:
        """The first run at or after *from_page*; it begins there when the page is amid a run."""
        return next(iter(self.take(from_page, self.pages, 1)), None)

    def _range(self, start: int, count: int) -> range:
        if start < 0 or count < 0 or start + count > self.pages:
            raise ValueError(f"{count} pages from page {start} on, in a block of {self.pages}")
        return range(start, start + count)
