"""The order of sending."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.model.pages import ReferencePageSet
from pageferry.policy.order import split_resident

page_sets = st.sets(st.integers(0, 40))


def made_of(pages: set[int]) -> ReferencePageSet:
    made = ReferencePageSet(41)
    made.add_runs((page, 1) for page in pages)
    return made


@given(page_sets, page_sets)
@settings(deadline=None)
def test_mapped_pages_come_last_and_none_is_lost(resident: set[int], mapped: set[int]) -> None:
    all_pages, hot = made_of(resident), made_of(mapped)
    first, last = split_resident(all_pages, hot)
    assert set(last) == resident & mapped
    assert set(first) == resident - mapped
    assert set(all_pages) == resident
    assert set(hot) == mapped
