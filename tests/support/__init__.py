"""What several test folders share.

A test that cannot run here says so through :func:`need`, with a reason an operator can act on.
With ``PAGEFERRY_REQUIRE_ALL=1`` a machine that is meant to run everything does not get away with
skipping: the same reason then fails the test.
"""

from __future__ import annotations

import os

import pytest

REQUIRE_ALL_VARIABLE = "PAGEFERRY_REQUIRE_ALL"


def require_all() -> bool:
    """Whether a skip counts as a failure."""
    return os.environ.get(REQUIRE_ALL_VARIABLE, "") not in ("", "0")


def need(ok: bool, reason: str) -> None:
    """Go on when `ok`; else skip the calling test for `reason`, or fail it under REQUIRE_ALL."""
    if ok:
        return
    if require_all():
        pytest.fail(f"{reason} ({REQUIRE_ALL_VARIABLE} is set, so this is not skipped)")
    pytest.skip(reason)
