"""The reference page set against sets of integers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.model.pages import ReferencePageSet, from_flat, runs_of, to_flat

PAGES = 60
page_sets = st.sets(st.integers(0, PAGES - 1))


def members(runs: list[tuple[int, int]]) -> list[int]:
    return [page for start, count in runs for page in range(start, start + count)]


def made_of(pages: set[int]) -> ReferencePageSet:
    made = ReferencePageSet(PAGES)
    for page in pages:
        made.add(page, 1)
    return made


@given(page_sets)
@settings(deadline=None)
def test_runs_are_ascending_disjoint_longest_and_whole(pages: set[int]) -> None:
    runs = runs_of(pages)
    assert members(runs) == sorted(pages)
    for (start, count), (following, _) in itertools.pairwise(runs):
        assert start + count < following


@given(page_sets)
@settings(deadline=None)
def test_flat_form_round_trip(pages: set[int]) -> None:
    runs = runs_of(pages)
    flat = to_flat(runs)
    assert from_flat(flat, PAGES) == runs
    assert sum(flat[1::2]) == len(pages)
    if pages:
        with pytest.raises(ValueError, match="run of"):
            from_flat(flat, max(pages))


@pytest.mark.parametrize("flat", [[1], [0, 0], [-1, 2], [0, -1], [0, PAGES + 1], [PAGES, 1]])
def test_bad_flat_form(flat: list[int]) -> None:
    with pytest.raises(ValueError, match=r"run|odd"):
        from_flat(flat, PAGES)


@given(page_sets, page_sets)
@settings(deadline=None)
def test_algebra(left: set[int], right: set[int]) -> None:
    for method, expected in (
        (ReferencePageSet.add_all, left | right),
        (ReferencePageSet.discard_all, left - right),
        (ReferencePageSet.keep_all, left & right),
    ):
        result, other = made_of(left), made_of(right)
        kept = result.copy()
        method(result, other)
        assert set(result) == expected
        assert set(other) == right
        assert set(kept) == left
        assert result.count() == len(expected)
        assert bool(result) == bool(expected)


@given(page_sets, st.integers(0, PAGES), st.integers(1, PAGES), st.integers(1, 9))
@settings(deadline=None)
def test_taking_piece_by_piece_gives_everything_once(
    pages: set[int], from_page: int, max_pages: int, max_runs: int
) -> None:
    made = made_of(pages)
    taken: list[int] = []
    at = from_page
    while runs := made.take(at, max_pages, max_runs):
        assert len(runs) <= max_runs
        assert len(members(runs)) <= max_pages
        taken += members(runs)
        at = sum(runs[-1])
    assert taken == [page for page in sorted(pages) if page >= from_page]
    assert set(made) == pages


@given(page_sets, st.integers(0, PAGES), st.integers(0, PAGES))
@settings(deadline=None)
def test_ranges(pages: set[int], one: int, other: int) -> None:
    start, count = min(one, other), abs(one - other)
    made = made_of(pages)
    assert made.count_range(start, count) == len(pages & set(range(start, start + count)))
    made.discard(start, count)
    assert set(made) == pages - set(range(start, start + count))
    made.add_runs([(start, count)])
    assert set(made) == pages | set(range(start, start + count))
    following = made.next(start)
    assert following is None or (following[0] in made and following[0] >= start)


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, PAGES + 1), (PAGES, 1), (0, -1)])
def test_range_outside_the_block_changes_nothing(start: int, count: int) -> None:
    made = made_of({3})
    for method in (made.add, made.discard, made.count_range):
        with pytest.raises(ValueError, match="block of"):
            method(start, count)
    assert set(made) == {3}
