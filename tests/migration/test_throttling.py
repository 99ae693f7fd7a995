"""The throttle and its guard on a real QEMU: quota, slices, and what is left when both die."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from pageferry.kernel.cpu_throttle import PREFIX, VcpuThrottle, undo_throttle
from pageferry.migration.progress import Progress
from pageferry.migration.throttling import Guard, Throttle, marker_path, undo_left_over
from pageferry.model.errors import KernelFeatureError
from pageferry.qemu.monitor import Monitor, open_monitor
from pageferry.testing.lab.guests import FreestandingGuest, freestanding_guest
from tests.conftest import generation
from tests.migration.conftest import tiny_plan
from tests.migration.test_convergence import vcpu_cgroups

pytestmark = [pytest.mark.root, pytest.mark.qemu]

ID = "0123456789abcdef"


@pytest.fixture
def guest() -> Iterator[FreestandingGuest]:
    with freestanding_guest(tiny_plan(generation("qemu-10.0"), pace=0)) as started:
        started.wait_ready()
        yield started


def vcpu_threads(guest: FreestandingGuest) -> list[int]:
    return [each["thread-id"] for each in guest.source.monitor.execute("query-cpus-fast")]


def cpu_share(guest: FreestandingGuest) -> float:
    """What the vCPU threads run, in processors, over a second."""

    def ran_ns() -> int:
        paths = [
            Path(f"/proc/{guest.source.pid}/task/{thread}/schedstat")
            for thread in vcpu_threads(guest)
        ]
        return sum(int(path.read_text().split()[0]) for path in paths)

    before_ns, began_ns = ran_ns(), time.monotonic_ns()
    time.sleep(1)
    return (ran_ns() - before_ns) / (time.monotonic_ns() - began_ns)


def test_a_quota_takes_what_it_says_and_is_undone(guest: FreestandingGuest) -> None:
    before = vcpu_cgroups(guest.source)
    throttle = VcpuThrottle(guest.source.pid, vcpu_threads(guest), ID)
    throttle.enter()
    try:
        [cgroup] = vcpu_cgroups(guest.source)
        assert cgroup.name.startswith(PREFIX)
        throttle.set(75)
        assert cpu_share(guest) < 0.3
        throttle.set(97)
        assert cpu_share(guest) < 0.06
    finally:
        throttle.leave()
    throttle.leave()
    assert vcpu_cgroups(guest.source) == before
    assert not cgroup.exists()
    assert cpu_share(guest) > 0.12


def test_anyone_can_undo_it(guest: FreestandingGuest) -> None:
    before = vcpu_cgroups(guest.source)
    throttle = VcpuThrottle(guest.source.pid, vcpu_threads(guest), ID)
    throttle.enter()
    throttle.set(90)
    [cgroup] = vcpu_cgroups(guest.source)
    assert undo_throttle(guest.source.pid)
    assert not undo_throttle(guest.source.pid)
    assert vcpu_cgroups(guest.source) == before
    assert not cgroup.exists()


def without_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose cpu cgroups may not be written to."""

    def refuse(_self: VcpuThrottle) -> None:
        raise KernelFeatureError("read-only", advice="")

    monkeypatch.setattr(VcpuThrottle, "enter", refuse)


def throttle_of(monitor: Monitor, folder: Path) -> Throttle:
    return Throttle(monitor, [], ID, folder, Progress(ID, "guest", 0))


def test_without_a_quota_it_is_stopped_in_slices(
    guest: FreestandingGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_quota(monkeypatch)
    shares: list[float] = []

    async def run() -> None:
        async with open_monitor(str(guest.source.qmp_path)) as monitor:
            throttle = throttle_of(monitor, tmp_path)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(throttle.run)
                await throttle.set(95)
                assert marker_path(tmp_path, ID).exists()
                shares.append(await trio.to_thread.run_sync(cpu_share, guest))
                await throttle.release()
                nursery.cancel_scope.cancel()

    trio.run(run)
    assert shares[0] < 0.15
    assert guest.source.status() == "running"
    assert not marker_path(tmp_path, ID).exists()
    assert cpu_share(guest) > 0.15


async def stopped_by_a_slice(guest: FreestandingGuest) -> Guard:
    """The guest is stopped, its monitor let go of, and the guard knows."""
    async with open_monitor(str(guest.source.qmp_path)) as monitor:
        guard = await Guard.start(monitor.peer_pid, monitor.path)
        guard.tell(b"T")
        guard.tell(b"S")
        await monitor.execute("stop")
    return guard


def test_the_guard_continues_a_guest_that_was_stopped_for_a_slice(
    guest: FreestandingGuest,
) -> None:
    async def run() -> None:
        guard = await stopped_by_a_slice(guest)
        assert await trio.to_thread.run_sync(guest.source.status) == "paused"
        await guard.end()

    trio.run(run)
    assert guest.source.status() == "running"


def test_a_guard_that_the_workers_own_monitor_keeps_out_goes_on(
    guest: FreestandingGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when QEMU has not answered `stop`: it takes no command of the worker any more."""
    monkeypatch.setattr("pageferry.migration.throttling.GUARD_END_S", 0.5)

    async def run() -> None:
        async with open_monitor(str(guest.source.qmp_path)) as monitor:
            guard = await Guard.start(monitor.peer_pid, monitor.path)
            guard.tell(b"S")
            await monitor.execute("stop")
            await guard.end()
            assert (await monitor.execute("query-status"))["status"] == "paused"

    trio.run(run)
    deadline_s = time.monotonic() + 30
    while guest.source.status() != "running":
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def test_the_guard_leaves_a_guest_alone_that_someone_else_stopped(
    guest: FreestandingGuest,
) -> None:
    async def run() -> None:
        guard = await stopped_by_a_slice(guest)
        guard.tell(b"C")
        await guard.end()

    trio.run(run)
    assert guest.source.status() == "paused"


def test_what_outlives_worker_and_guard_is_undone_by_whoever_settles(
    guest: FreestandingGuest, tmp_path: Path
) -> None:
    before = vcpu_cgroups(guest.source)
    throttle = VcpuThrottle(guest.source.pid, vcpu_threads(guest), ID)
    throttle.enter()
    throttle.set(90)
    guest.source.monitor.execute("stop")
    marker = marker_path(tmp_path, ID)
    marker.touch()
    arguments = (guest.source.pid, str(guest.source.qmp_path), tmp_path, ID)
    for _again in range(2):
        trio.run(partial(undo_left_over, resume=True), *arguments)
        assert guest.source.status() == "running"
        assert vcpu_cgroups(guest.source) == before
        assert not marker.exists()
    # Without the marker it is not ours to continue it.
    guest.source.monitor.execute("stop")
    trio.run(partial(undo_left_over, resume=True), *arguments)
    assert guest.source.status() == "paused"
