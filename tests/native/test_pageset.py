"""The native page set and runs against the slow reference, with random schedules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pageferry.kernel.pageset import PageSet, Runs, note_sent
from pageferry.model.pages import ReferencePageSet, from_flat, runs_of, to_flat

PAGES = 200  # several words and a part of one

page_sets = st.sets(st.integers(0, PAGES - 1))
ranges = st.tuples(st.integers(0, PAGES), st.integers(0, PAGES)).map(
    lambda pair: (min(pair), max(pair) - min(pair))
)


def native_of(pages: set[int]) -> PageSet:
    found = PageSet(PAGES)
    found.add_runs(Runs.from_pages(pages))
    return found


def reference_of(pages: set[int]) -> ReferencePageSet:
    found = ReferencePageSet(PAGES)
    found.add_runs(runs_of(pages))
    return found


class PageSets(RuleBasedStateMachine):
    """The same operations on both; they must agree after each."""

    def __init__(self) -> None:
        super().__init__()
        self.native = PageSet(PAGES)
        self.reference = ReferencePageSet(PAGES)

    @rule(where=ranges)
    def add(self, where: tuple[int, int]) -> None:
        self.native.add(*where)
        self.reference.add(*where)

    @rule(where=ranges)
    def discard(self, where: tuple[int, int]) -> None:
        self.native.discard(*where)
        self.reference.discard(*where)

    @rule(pages=page_sets)
    def add_runs(self, pages: set[int]) -> None:
        self.native.add_runs(Runs.from_pages(pages))
        self.reference.add_runs(runs_of(pages))

    @rule(pages=page_sets)
    def discard_runs(self, pages: set[int]) -> None:
        self.native.discard_runs(Runs.from_pages(pages))
        self.reference.discard_runs(runs_of(pages))

    @rule(pages=page_sets)
    def add_all(self, pages: set[int]) -> None:
        self.native.add_all(native_of(pages))
        self.reference.add_all(reference_of(pages))

    @rule(pages=page_sets)
    def discard_all(self, pages: set[int]) -> None:
        self.native.discard_all(native_of(pages))
        self.reference.discard_all(reference_of(pages))

    @rule(pages=page_sets)
    def keep_all(self, pages: set[int]) -> None:
        self.native.keep_all(native_of(pages))
        self.reference.keep_all(reference_of(pages))

    @rule()
    @precondition(lambda self: bool(self.reference))
    def clear(self) -> None:
        self.native.clear()
        self.reference.clear()

    @rule(runs=st.integers(0, 20))
    def keep_long_runs(self, runs: int) -> None:
        self.native.keep_long_runs(runs)
        self.reference.keep_long_runs(runs)
        assert len(self.native.runs()) <= runs

    @rule()
    def copy(self) -> None:
        before = self.native
        self.native = self.native.copy()
        assert self.native == before
        before.clear()

    @rule(first=st.integers(0, PAGES), pages=st.integers(1, PAGES), runs=st.integers(1, 9))
    def take(self, first: int, pages: int, runs: int) -> None:
        assert list(self.native.take(first, pages, runs)) == self.reference.take(first, pages, runs)
        assert self.native.next(first) == self.reference.next(first)

    @rule(where=ranges)
    def look_at_a_range(self, where: tuple[int, int]) -> None:
        assert self.native.count_range(*where) == self.reference.count_range(*where)
        inside = [page for page in self.reference if where[0] <= page < sum(where)]
        assert list(self.native.slice(*where)) == runs_of(inside)

    @invariant()
    def agree(self) -> None:
        assert list(self.native.runs()) == self.reference.runs()
        assert self.native.count() == self.reference.count()
        assert bool(self.native) == bool(self.reference)


TestPageSets = PageSets.TestCase


@given(page_sets)
def test_wire_form_comes_back(pages: set[int]) -> None:
    runs = Runs.from_pages(pages)
    flat = runs.to_list()
    assert flat == to_flat(runs_of(pages))
    assert Runs.from_list(flat, PAGES) == runs
    assert (runs.pages, len(runs)) == (len(pages), len(runs_of(pages)))
    assert runs.end_page == max(pages, default=-1) + 1
    assert runs.first_page == min(pages, default=0)


@given(
    st.lists(st.one_of(st.integers(0, 60), st.integers(-3, 2**65))),
    st.integers(0, PAGES),
)
def test_what_a_peer_sends_is_judged_as_the_reference_does(flat: list[int], limit: int) -> None:
    try:
        expected = from_flat(flat, limit)
    except ValueError:
        with pytest.raises(ValueError, match="gap"):
            Runs.from_list(flat, limit)
        return
    pages = [page for start, count in expected for page in range(start, start + count)]
    assert list(Runs.from_list(flat, limit)) == runs_of(pages)


@pytest.mark.parametrize("flat", [["1", 1], [1.5, 1], [None, 1], [b"", b""], [[], []]])
def test_peer_sends_runs_that_are_no_integers(flat: list[int]) -> None:
    with pytest.raises(ValueError, match="gaps"):
        Runs.from_list(flat, PAGES)


@given(page_sets, page_sets)
def test_minus(left: set[int], right: set[int]) -> None:
    rest = Runs.from_pages(left).minus(Runs.from_pages(right))
    assert list(rest) == runs_of(left - right)


@given(page_sets, page_sets, page_sets, page_sets)
def test_what_was_sent_is_noted(
    before: set[int], settled: set[int], pages: set[int], zeros: set[int]
) -> None:
    sent_set, settled_set, zeros = native_of(before), native_of(settled), zeros - pages
    note_sent(sent_set, settled_set, Runs.from_pages(pages), Runs.from_pages(zeros))
    assert sent_set == native_of((before | pages) - zeros)
    assert settled_set == native_of(settled | pages | zeros)
    with pytest.raises(ValueError, match="beyond"):
        note_sent(PageSet(1), PageSet(1), Runs.from_pages({5}), Runs.from_pages(set()))


@given(page_sets, st.integers(1, 50))
def test_pieces_make_up_the_whole_in_order(pages: set[int], size: int) -> None:
    pieces = list(Runs.from_pages(pages).pieces(size))
    assert all(piece.pages == size for piece in pieces[:-1])
    found = [page for piece in pieces for start, n in piece for page in range(start, start + n)]
    assert found == sorted(pages)


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, PAGES + 1), (PAGES, 1), (2**70, 1)])
def test_ranges_outside_are_refused_and_change_nothing(start: int, count: int) -> None:
    pages = PageSet(PAGES)
    pages.add(3, 4)
    for change in (pages.add, pages.discard, pages.count_range, pages.slice):
        with pytest.raises(ValueError, match="pages"):
            change(start, count)
    assert list(pages.runs()) == [(3, 4)]


def test_runs_beyond_the_set_are_refused_whole() -> None:
    pages = PageSet(PAGES)
    with pytest.raises(ValueError, match="beyond"):
        pages.add_runs(Runs.from_pairs([(0, 1), (PAGES, 1)]))
    assert not pages


def test_sets_of_different_sizes_do_not_mix() -> None:
    with pytest.raises(ValueError, match="beyond"):
        PageSet(PAGES).add_all(PageSet(PAGES + 1))
    assert PageSet(PAGES) != PageSet(PAGES + 1)


def test_pairs_that_go_backwards_are_refused() -> None:
    with pytest.raises(ValueError, match="gap"):
        Runs.from_pairs([(5, 2), (6, 1)])
