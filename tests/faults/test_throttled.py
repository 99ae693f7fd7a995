"""A guest that is throttled when the fault comes gets all its time back, whoever is left to see to
it: the worker, its guard, or a daemon that finds the journal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import pytest

from pageferry.testing.faults import CPU_QUOTA
from pageferry.testing.lab.packages import QemuBinary
from tests.faults.afterwards import assert_settled
from tests.faults.cases import Case, Fault, Owner, S
from tests.faults.recording import WHOLE_VARIABLE
from tests.faults.strikes import LASTS_S, STRIKES
from tests.faults.world import GUARD, World, eventually, world_of

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu]

THROTTLE_PERCENT: Final = 60
"""Stopped in slices the guest stands still for most of the time: it is struck in one of them."""

DEFAULTS: Final = {
    "auto-converge": True,
    "cpu-throttle-initial": THROTTLE_PERCENT,
    "max-cpu-throttle": THROTTLE_PERCENT,
    "on-no-convergence": "continue",
}

NEVER_CONVERGES: Final = ("--downtime-limit", "1", "--max-bandwidth", "64M")

BY_QUOTA: Final = ()
IN_SLICES: Final = (f"{CPU_QUOTA}=EROFS",)


def guards(world: World) -> list[int]:
    """The processes that would undo the throttle of a worker that is gone."""
    found = []
    for pid in world.processes():
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if GUARD in file.read():
                found.append(pid)
    return found


def _kill_all(world: World) -> None:
    """Daemon, worker and guard, as at a power cut of which only QEMU knows nothing."""
    worker, (guard,) = world.worker(world.pair.here), guards(world)
    STRIKES[Fault.SOURCE_DAEMON_KILLED](world)
    for pid in (guard, worker):
        os.kill(pid, signal.SIGKILL)


def _kill_all_and_qemu(world: World) -> None:
    """What is left of the throttle then is in no process any more."""
    _kill_all(world)
    STRIKES[Fault.SOURCE_QEMU_KILLED](world)


def _hang(world: World) -> None:
    """QEMU, stopped for a slice or about to be."""
    STRIKES[Fault.SOURCE_QEMU_HANGS](world)
    time.sleep(LASTS_S)


@dataclass(frozen=True, slots=True)
class Throttled:
    """How it is throttled, what is done to it then, and whose the guest is afterwards."""

    how: tuple[str, ...]
    strike: Callable[[World], None]
    owner: Owner = Owner.SOURCE


STRUCK: Final[Mapping[str, Throttled]] = {
    "quota-all-killed": Throttled(BY_QUOTA, _kill_all),
    "quota-all-and-qemu-killed": Throttled(BY_QUOTA, _kill_all_and_qemu, Owner.ENDED),
    "quota-destination-worker-killed": Throttled(
        BY_QUOTA, STRIKES[Fault.DESTINATION_WORKER_KILLED]
    ),
    "slices-worker-killed": Throttled(IN_SLICES, STRIKES[Fault.SOURCE_WORKER_KILLED]),
    "slices-all-killed": Throttled(IN_SLICES, _kill_all),
    "slices-qemu-hangs": Throttled(IN_SLICES, _hang),
}


QUICK: Final = ("quota-all-and-qemu-killed", "slices-worker-killed")
"""The cut for every day."""

CHOSEN: Final = list(STRUCK if WHOLE_VARIABLE in os.environ else QUICK)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_throttled_guest_gets_its_time_back(
    name: str, host_swap: object, newest_qemu: QemuBinary
) -> None:
    struck = STRUCK[name]
    # It would be held at the switchover, to which it does not come.
    case = Case(S.SWITCHOVER, Fault.SOURCE_WORKER_KILLED)
    with world_of(
        case, newest_qemu, faults=struck.how, defaults=DEFAULTS, pace=0, hot_mib=8
    ) as world:
        world.begin(*NEVER_CONVERGES)
        eventually(lambda: is_throttled(world), world.logs)
        struck.strike(world)
        world.stack.close()
        outcome = assert_settled(world)
        assert outcome.owner is struck.owner, f"{outcome}\n{world.logs()}"
        assert world.pair.journal_phases()["source"] in ("failed", "cancelled")


def is_throttled(world: World) -> bool:
    percent: int = world.pair.info().get("cpu-throttle-percentage", 0)
    return percent >= THROTTLE_PERCENT
