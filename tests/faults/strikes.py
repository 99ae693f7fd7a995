"""The faults, as they are done to a held migration from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import pytest

from pageferry.testing.lab.carrying import GUEST_NAME
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.daemons import LabDaemon
from pageferry.testing.lab.links import slow_down
from pageferry.testing.lab.monitor import LabMonitor
from pageferry.testing.lab.networks import lose_all, lose_nothing
from pageferry.testing.lab.programs import run
from pageferry.testing.lab.qemus import LabQemu
from pageferry.testing.lab.swap import full_swap
from tests.faults.cases import IN_FLIGHT, Fault, is_committed
from tests.faults.world import MIB, POLL_S, World

AMID_S: Final = 0.1
"""When to strike in a phase that lasts."""

LASTS_S: Final = 14.0
"""How long something hangs or is cut off: longer than it takes to be noticed, which is 10 s for a
peer that says nothing, and for a QEMU that does not answer."""

SLOW_BITS_PER_S: Final = 80_000_000

Strike = Callable[[World], None]


def strike(world: World) -> None:
    """Begin the migration, let it come to its phase, do there what the case says, let it go on, and
    repair what does not stay broken."""
    case = world.case
    if case.fault in BEFORE:
        BEFORE[case.fault](world)
        world.release(case.phase)
        world.begin()
        _wait_until_over(world)
        world.stack.close()
        return
    world.begin()
    world.wait_held(case.phase)
    held = case.phase
    if case.phase in IN_FLIGHT:
        world.release(case.phase)
        time.sleep(AMID_S)
        held = IN_FLIGHT[case.phase]
    STRIKES[case.fault](world)
    world.release(held)
    if case.fault in LASTING:
        _wait_until_over(world)
    world.stack.close()


def _wait_until_over(world: World) -> None:
    """Until the fault has lasted long enough, or nobody is left to notice it."""
    deadline_s = time.monotonic() + LASTS_S
    while world.processes() and time.monotonic() < deadline_s:
        time.sleep(POLL_S)


def _kill_worker(world: World, daemon: LabDaemon) -> None:
    os.kill(world.worker(daemon), signal.SIGKILL)


def _kill_daemon(world: World, daemon: LabDaemon) -> None:
    """As after a crash, the next one is started at once."""
    daemon.process.kill()
    daemon.process.wait()
    world.stack.callback(daemon.start)


def _kill_qemu(qemu: LabQemu) -> None:
    qemu.process.kill()
    qemu.process.wait()


def _stop(world: World, pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)

    def go_on() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    world.stack.callback(go_on)


def _cancel(world: World, daemon: LabDaemon) -> None:
    """Told the truth: that it is too late, or nothing."""
    with contextlib.closing(LabMonitor(daemon.control_socket)) as control:
        if is_committed(world.case, daemon.name):
            with pytest.raises(LabError, match="has been committed"):
                control.execute("migrate-cancel", guest=GUEST_NAME)
        else:
            control.execute("migrate-cancel", guest=GUEST_NAME)


def _migrate_again(world: World) -> None:
    with pytest.raises(LabError, match="is in a migration already"):
        world.pair.control.execute("migrate", guest=GUEST_NAME, uri=world.pair.there.address)


def _cut(world: World, *, also_to_destination: bool) -> None:
    assert world.network is not None
    source, destination = world.network
    lose_all(destination, source)
    world.stack.callback(partial(lose_nothing, destination, source))
    if also_to_destination:
        lose_all(source, destination)
        world.stack.callback(partial(lose_nothing, source, destination))


def _slow(world: World) -> None:
    assert world.network is not None
    for end in world.network:
        slow_down(end, SLOW_BITS_PER_S)


def _make_room_afterwards(world: World) -> None:
    """The fault point is in the daemon too, which settles what is left: the next one is well."""

    def make_room() -> None:
        assert world.operator is not None
        world.operator.wait()
        for daemon in world.daemons:
            daemon.stop()
            daemon.environment = {}
            daemon.start()

    world.stack.callback(make_room)


def _fill_disk(world: World, daemon: LabDaemon) -> None:
    """A disk of its own for the state directory, without room for one more byte."""
    where = str(daemon.state_directory)
    run("mount", "-t", "tmpfs", "-o", "size=16k,mode=0700", "tmpfs", where)
    world.stack.callback(run, "umount", "--lazy", where)
    ballast = daemon.state_directory / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def _lose_swap(world: World) -> None:
    assert world.swap is not None
    world.swap.fail()
    world.has_lost_pages = True


def _take_memory(world: World) -> None:
    """What is left of the destination's cgroup does for an eighth of the guest."""
    cgroup = world.pair.destination.cgroup
    assert cgroup is not None
    cgroup.forbid_swap()
    cgroup.set_limit(cgroup.usage_bytes() + 4 * MIB)
    world.stack.callback(cgroup.set_limit, None)


STRIKES: Final[Mapping[Fault, Strike]] = {
    Fault.SOURCE_WORKER_KILLED: lambda world: _kill_worker(world, world.pair.here),
    Fault.DESTINATION_WORKER_KILLED: lambda world: _kill_worker(world, world.pair.there),
    Fault.SOURCE_DAEMON_KILLED: lambda world: _kill_daemon(world, world.pair.here),
    Fault.DESTINATION_DAEMON_KILLED: lambda world: _kill_daemon(world, world.pair.there),
    Fault.SOURCE_QEMU_KILLED: lambda world: _kill_qemu(world.pair.source),
    Fault.DESTINATION_QEMU_KILLED: lambda world: _kill_qemu(world.pair.destination),
    Fault.SOURCE_WORKER_HANGS: lambda world: _stop(world, world.worker(world.pair.here)),
    Fault.DESTINATION_WORKER_HANGS: lambda world: _stop(world, world.worker(world.pair.there)),
    Fault.SOURCE_QEMU_HANGS: lambda world: _stop(world, world.pair.source.pid),
    Fault.DESTINATION_QEMU_HANGS: lambda world: _stop(world, world.pair.destination.pid),
    Fault.CANCELLED_AT_SOURCE: lambda world: _cancel(world, world.pair.here),
    Fault.CANCELLED_AT_DESTINATION: lambda world: _cancel(world, world.pair.there),
    Fault.SECOND_MIGRATION: _migrate_again,
    Fault.NETWORK_CUT: lambda world: _cut(world, also_to_destination=True),
    Fault.NETWORK_HALF_OPEN: lambda world: _cut(world, also_to_destination=False),
    Fault.NETWORK_SLOW: _slow,
    Fault.SWAP_FULL: lambda world: world.stack.enter_context(full_swap()),
    Fault.DESTINATION_OUT_OF_MEMORY: _take_memory,
}
"""What is done to a migration that is held."""

BEFORE: Final[Mapping[Fault, Strike]] = {
    # The fault point does it, in the processes that have the environment.
    Fault.JOURNAL_FULL: _make_room_afterwards,
    Fault.SWAP_UNREADABLE: _lose_swap,
    Fault.SOURCE_DISK_FULL: lambda world: _fill_disk(world, world.pair.here),
    Fault.DESTINATION_DISK_FULL: lambda world: _fill_disk(world, world.pair.there),
}
"""What is done before the migration begins."""

LASTING: Final = frozenset(
    {
        *(Fault.SOURCE_WORKER_HANGS, Fault.DESTINATION_WORKER_HANGS),
        *(Fault.SOURCE_QEMU_HANGS, Fault.DESTINATION_QEMU_HANGS),
        *(Fault.NETWORK_CUT, Fault.NETWORK_HALF_OPEN),
        *(Fault.SWAP_FULL, Fault.SWAP_UNREADABLE, Fault.DESTINATION_OUT_OF_MEMORY),
    }
)
"""Faults that go on for a while and then end by themselves."""
