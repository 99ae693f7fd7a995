"""Real guests between real daemons. One host plays both: two QEMUs, two pageferryd on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from pageferry.testing.lab.guests import FreestandingGuest, GuestPlan
from pageferry.testing.lab.packages import QemuBinary
from tests.migration.pairs import Pair, pair_of

MakePair = Callable[..., Pair]


def small_plan(binary: QemuBinary, **changes: object) -> GuestPlan:
    """A guest of which about 80 MiB lie in swap once it is settled."""
    values: dict[str, object] = {
        "binary": binary,
        "ram_mib": 256,
        "cold_mib": 96,
        "hot_mib": 16,
        "zero_mib": 8,
        "limit_mib": 112,
        **changes,
    }
    return GuestPlan(**values)  # type: ignore[arg-type]


@pytest.fixture
def make_pair() -> Iterator[MakePair]:
    """Starts a guest by its plan, with its destination and both daemons; all are ended."""
    with contextlib.ExitStack() as stack:

        def start(plan: GuestPlan, **options: object) -> Pair:
            return stack.enter_context(pair_of(plan, **options))  # type: ignore[arg-type]

        yield start


@pytest.fixture
def swapped_pair(host_swap: object, make_pair: MakePair, newest_qemu: QemuBinary) -> Pair:
    """A settled guest, most of its cold memory in swap, ready to be migrated."""
    return make_pair(small_plan(newest_qemu))


@pytest.fixture
def tiny_pair(make_pair: MakePair, newest_qemu: QemuBinary) -> Pair:
    """A small guest without a limit and without swap: for what does not depend on residency."""
    return make_pair(tiny_plan(newest_qemu))


def tiny_plan(binary: QemuBinary, **changes: object) -> GuestPlan:
    """A guest of 64 MiB, all resident."""
    return small_plan(
        binary, **{"ram_mib": 64, "cold_mib": 24, "hot_mib": 4, "limit_mib": None, **changes}
    )


def assert_verified(guest: FreestandingGuest) -> None:
    """The guest, wherever it runs, finds every page of its memory right."""
    found = guest.verify()
    assert found.bad == 0, found
    assert found.pages * 4096 == (
        guest.layout.cold.length_bytes
        + guest.layout.hot.length_bytes
        + guest.layout.zero.length_bytes
    )
