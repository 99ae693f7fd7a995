"""Which pages are left without write protection until the cold pass is over.

The guest's first write to a protected page is a fault, which took 64 touches from 0.25 to 0.5 ms
where both processors were busy with a cold pass. So the pages that QEMU has mapped, among which are
all that the guest works with, are protected only when it is their turn to be sent.
"""

from __future__ import annotations

MOST_RUNS_LEFT = 65_536
"""Runs of a block that are left unprotected: each is a system call more, of 0.3 to 0.6 µs."""

MOST_LEFT_SHARE = 0.75
"""Of a guest that is mostly mapped the cold pass is short, and what is left may have to be sent
twice: where a drain takes long there is none between protecting it and sending it (`writes`)."""


def mapped_is_left(mapped_pages: int, data_pages: int) -> bool:
    """Whether to leave *mapped_pages*, of the *data_pages* that the guest has."""
    return 0 < mapped_pages <= MOST_LEFT_SHARE * data_pages
