"""A short soak with a fixed seed: real guests, agents and faults. `make soak` is the long one."""

from __future__ import annotations

import pytest

from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.soak.main import soak

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu, pytest.mark.slow]

SEED = 1
MINUTES = 0.75


def test_a_minute_of_soak(host_swap: object, newest_qemu: QemuBinary) -> None:
    tally = soak(newest_qemu, SEED, MINUTES)
    assert tally.findings == []
    assert tally.hops >= 1
    assert tally.faults + tally.cancels >= 1
