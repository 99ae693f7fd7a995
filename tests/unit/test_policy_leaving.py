"""Which pages are left unprotected until the cold pass is over."""

from __future__ import annotations

import pytest

from pageferry.policy.leaving import mapped_is_left


@pytest.mark.parametrize(
    ("mapped_pages", "data_pages", "left"),
    [
        (100, 1000, True),
        (750, 1000, True),
        (751, 1000, False),  # mostly mapped
        (0, 1000, False),
        (0, 0, False),
        (5, 0, False),  # punched meanwhile
    ],
)
def test_mapped_pages_are_left_where_most_is_not_mapped(
    mapped_pages: int, data_pages: int, left: bool
) -> None:
    assert mapped_is_left(mapped_pages, data_pages) is left
