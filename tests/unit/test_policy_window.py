"""The page-in window: bounded, monotone, and as configured."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.policy.window import page_in_window_bytes

MIB = 2**20
headrooms = st.integers(-(2**30), 2**42)


@given(st.none() | headrooms, headrooms)
@settings(deadline=None)
def test_bounded_and_whole_pages(guest: int | None, host: int) -> None:
    window_bytes = page_in_window_bytes(guest, host, None)
    assert MIB <= window_bytes <= 8 * MIB
    assert window_bytes % 65_536 == 0


@given(headrooms, headrooms, headrooms)
@settings(deadline=None)
def test_no_smaller_for_more_headroom(guest: int, more: int, host: int) -> None:
    less, more = sorted((guest, more))
    assert page_in_window_bytes(less, host, None) <= page_in_window_bytes(more, host, None)
    assert page_in_window_bytes(host, less, None) <= page_in_window_bytes(host, more, None)
    assert page_in_window_bytes(more, host, None) <= page_in_window_bytes(None, host, None)


@given(st.none() | headrooms, headrooms, st.integers(65_536, 2**30))
@settings(deadline=None)
def test_configured_is_taken_as_it_is(guest: int | None, host: int, configured: int) -> None:
    assert page_in_window_bytes(guest, host, configured) == configured


@pytest.mark.parametrize(
    ("guest", "host", "window"),
    [
        (0, 2**40, MIB),  # a guest at its limit, as measured
        (None, 2**40, 8 * MIB),
        (32 * MIB, 2**40, 4 * MIB),
        (2**40, 16 * MIB, 2 * MIB),
    ],
)
def test_examples(guest: int | None, host: int, window: int) -> None:
    assert page_in_window_bytes(guest, host, None) == window
