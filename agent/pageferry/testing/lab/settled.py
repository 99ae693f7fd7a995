"""The guests that migrations are compared on, started and settled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from pageferry.testing.lab.guests import FreestandingGuest, GuestPlan, freestanding_guest
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.qemus import Machine

OVERCOMMITTED_COLD_SHARE = 0.85
"""The cgroup stays at its limit, as on an overcommitted host: squeezing out more would leave room
that spares QEMU the thrashing.
"""


def overcommitted_plan(binary: QemuBinary) -> GuestPlan:
    """The guest of the comparison: 1 GiB, 640 MiB cold, 64 MiB hot, within 160 MiB."""
    return GuestPlan(binary, ram_mib=1024, cold_mib=640, hot_mib=64, zero_mib=16, limit_mib=160)


def resident_plan(binary: QemuBinary) -> GuestPlan:
    """A guest without a limit, all of whose 640 MiB stay resident: for throughput."""
    return replace(overcommitted_plan(binary), limit_mib=None)


@contextlib.contextmanager
def settled_pair(
    plan: GuestPlan,
    cold_share: float = OVERCOMMITTED_COLD_SHARE,
    change: Callable[[Machine], Machine] | None = None,
) -> Iterator[FreestandingGuest]:
    """A guest that is settled (when it has a limit), its destination waiting.

    *change* makes the destination's machine differ from the source's.
    """
    with freestanding_guest(plan) as guest:
        guest.wait_ready()
        if plan.limit_mib is not None:
            guest.settle(cold_share)
        guest.start_destination(change)
        yield guest
