"""Each fault in each phase: one owner, all memory, nothing left, and a word on what to do."""

from __future__ import annotations

import pytest

from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.swap import OthersSwappedError
from tests.faults.afterwards import assert_settled
from tests.faults.cases import MATRIX, QUICK, Case, owners
from tests.faults.recording import chosen, record
from tests.faults.strikes import strike
from tests.faults.world import world_of

TRIES = 4
"""A host may swap out others' memory on its own account; then nothing was struck."""

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu]


@pytest.mark.parametrize("case", chosen(list(MATRIX), QUICK), ids=lambda case: case.name)
def test_fault_in_phase(case: Case, host_swap: object, newest_qemu: QemuBinary) -> None:
    for tries_left in reversed(range(TRIES)):
        try:
            with world_of(case, newest_qemu) as world:
                strike(world)
                outcome = assert_settled(world)
                assert outcome.owner in owners(case), f"{outcome}\n{world.logs()}"
        except OthersSwappedError:
            if tries_left:
                continue
            raise
        record(case.name, outcome)
        return
