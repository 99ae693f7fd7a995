"""Dividing a scan: every page once, and no two pieces in one word of a bitmap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pageferry.model.blocks import PAGE_BYTES
from pageferry.policy.scanning import PIECE_BYTES, WORD_PAGES, scan_pieces, scan_threads

BASE = 0x7F00_0000_0000
PIECE_PAGES = PIECE_BYTES // PAGE_BYTES


@given(st.integers(0, 3 * PIECE_PAGES), st.integers(1, 9 * PIECE_PAGES))
def test_every_page_is_in_one_piece(first_page: int, pages: int) -> None:
    pieces = list(scan_pieces(BASE, BASE + pages * PAGE_BYTES, first_page))
    at, page = BASE, first_page
    for start, end, first in pieces:
        assert (start, first) == (at, page)
        assert start < end
        page += (end - start) // PAGE_BYTES
        at = end
    assert at == BASE + pages * PAGE_BYTES
    assert all(first % WORD_PAGES == 0 for _start, _end, first in pieces[1:])
    assert len(pieces) <= pages // PIECE_PAGES + 2


def test_a_small_guest_is_scanned_whole() -> None:
    assert len(list(scan_pieces(BASE, BASE + PIECE_BYTES, 0))) == 1


def test_threads_are_as_many_as_processors() -> None:
    assert [scan_threads(each) for each in (0, 1, 2, 64)] == [1, 1, 2, 32]
