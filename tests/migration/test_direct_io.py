"""Direct I/O: pages that QEMU pinned before a scan and that its disk fills after it.

A Linux guest reads its disks through its page cache, dropping what it has read, so that reads go by
DMA into ever other pages, while rounds follow each other without a pause. Each disk is opened with
``cache=none`` and another kind of asynchronous I/O; a page that holds a block says of which disk.
All RAM is compared while the guest stands still on both sides.

Each of the two ways to be right is also tried without any drain, and must then be wrong: otherwise
the guest would not be reading hard enough to prove anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from pageferry.testing.faults import BACK_TO_BACK_ROUNDS, DRAIN_EVERY_ROUND, SKIP_DRAIN
from pageferry.testing.lab.cgroups import disk_cgroup
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.disks import AIO_MODES, LabDisk, pattern_image, why_not
from pageferry.testing.lab.late import late_file
from pageferry.testing.lab.linux_guest import LinuxGuest, LinuxPlan, linux_guest
from pageferry.testing.lab.packages import PackageError, QemuBinary
from pageferry.testing.lab.programs import loop_device
from tests.migration.frozen import Carried, carry_frozen
from tests.support import need

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.slow]

DISK_MIB = 64
RAM_MIB = 384

LATE_DISK_MS = 80.0
"""Reads are in flight for longer than it takes from a scan to a copy: 5 to 10 ms here, and two or
three times that on a busy host."""

LATE_READS = {"threads": 4, "chunk_kib": 256, "keep_mib": 56}
LATE_ROUNDS = 16

SLOW_DISK_READS_PER_S = 32
SLOW_READS = {"threads": 32, "chunk_kib": 64, "keep_mib": 56}
"""As many reads at a time as a disk answers in a second: each is in flight for a second."""

SLOW_ROUNDS = 25

SLOW_READ_NS = 700_000_000
"""What a read must take on average on a disk that counts as slow."""

T = TypeVar("T")

aio_mode = pytest.mark.parametrize("aio", AIO_MODES)


@pytest.fixture(scope="module")
def drained(qemu_binary: QemuBinary) -> Carried:
    """A guest on late disks, every round drained: as on quick disks, where no test could tell."""
    return carried_from_late_disks(qemu_binary, {DRAIN_EVERY_ROUND: None})


@pytest.fixture(scope="module")
def undrained(qemu_binary: QemuBinary) -> Carried:
    """The same without a drain."""
    return carried_from_late_disks(qemu_binary, {SKIP_DRAIN: None})


@pytest.fixture(scope="module")
def slow_drained(newest_qemu: QemuBinary) -> Carried:
    """A guest on disks that take a second, carried as operators carry it."""
    return carried_from_slow_disks(newest_qemu, {})


@pytest.fixture(scope="module")
def slow_undrained(newest_qemu: QemuBinary) -> Carried:
    """The same without a drain."""
    return carried_from_slow_disks(newest_qemu, {SKIP_DRAIN: None})


@aio_mode
def test_no_page_is_stale(drained: Carried, qemu_binary: QemuBinary, aio: str) -> None:
    need_aio(qemu_binary, aio)
    assert drained.rounds >= LATE_ROUNDS
    assert drained.stale == {}
    # On the destination the guest finds every block right that its memory holds.
    assert drained.checks[name_of(aio)].cached > 0
    assert drained.checks[name_of(aio)].bad == 0


@aio_mode
def test_pages_are_stale_without_the_drain(
    undrained: Carried, qemu_binary: QemuBinary, aio: str
) -> None:
    need_aio(qemu_binary, aio)
    assert undrained.stale[name_of(aio)] > 0


def test_every_round_is_drained(drained: Carried) -> None:
    # One after arming, before the first pass, and one after each scan but the last, for which the
    # guest is stopped.
    assert drained.drains == drained.rounds
    assert drained.longest_drain_ms >= LATE_DISK_MS / 2


@aio_mode
def test_no_page_is_stale_though_drains_are_postponed(
    slow_drained: Carried, newest_qemu: QemuBinary, aio: str
) -> None:
    need_aio(newest_qemu, aio)
    assert slow_drained.rounds >= SLOW_ROUNDS
    assert slow_drained.stale == {}
    assert slow_drained.checks[name_of(aio)].cached > 0
    assert slow_drained.checks[name_of(aio)].bad == 0


def test_slow_drains_are_postponed_to_the_last_round(slow_drained: Carried) -> None:
    # After arming, and once before the switchover. Rounds in between hold the guest up for nothing.
    assert slow_drained.drains == 2
    assert slow_drained.longest_drain_ms > SLOW_READ_NS / 2e6


@aio_mode
def test_pages_of_slow_disks_are_stale_without_the_drain(
    slow_undrained: Carried, newest_qemu: QemuBinary, aio: str
) -> None:
    need_aio(newest_qemu, aio)
    assert slow_undrained.stale[name_of(aio)] > 0


def carried_from_late_disks(binary: QemuBinary, broken: dict[str, None]) -> Carried:
    with contextlib.ExitStack() as stack:
        disks = []
        for aio in usable_modes(binary):
            image = pattern_image(name_of(aio), DISK_MIB)
            path = enter(stack, late_file(image, LATE_DISK_MS))
            disks.append(LabDisk(name_of(aio), path, aio))
        guest = stack.enter_context(ready_guest(binary, disks))
        guest.read_disks(**LATE_READS)
        guest.wait_blocks(DISK_MIB * 256 // 2)
        return carry_frozen(guest, {**broken, BACK_TO_BACK_ROUNDS: LATE_ROUNDS})


def carried_from_slow_disks(binary: QemuBinary, broken: dict[str, None]) -> Carried:
    with contextlib.ExitStack() as stack:
        disks = []
        for aio in usable_modes(binary):
            image = pattern_image(name_of(aio), DISK_MIB)
            device = enter(stack, loop_device(image, "--read-only"))
            disks.append(LabDisk(name_of(aio), Path(device), aio))
        cgroup = enter(stack, disk_cgroup("slow-disks"))
        guest = stack.enter_context(ready_guest(binary, disks))
        cgroup.join(guest.source.pid)
        for disk in disks:
            cgroup.limit_reads(disk.path, SLOW_DISK_READS_PER_S)
        guest.read_disks(**SLOW_READS)
        # The kernel lets a first burst through; from then on each read waits its turn.
        guest.wait_blocks(3 * SLOW_READS["threads"] * SLOW_READS["chunk_kib"] // 4)
        before = reads_of(guest)
        guest.wait_blocks(5 * SLOW_READS["threads"] * SLOW_READS["chunk_kib"] // 4)
        for device_name, (count, total_ns) in reads_of(guest).items():
            earlier_count, earlier_ns = before[device_name]
            assert (total_ns - earlier_ns) / (count - earlier_count) > SLOW_READ_NS
        return carry_frozen(guest, {**broken, BACK_TO_BACK_ROUNDS: SLOW_ROUNDS})


@contextlib.contextmanager
def ready_guest(binary: QemuBinary, disks: list[LabDisk]) -> Iterator[LinuxGuest]:
    """A Linux guest with these disks that has booted, and its waiting destination."""
    try:
        plan = LinuxPlan(binary, tuple(disks), ram_mib=RAM_MIB)
        plan.as_machine()
    except PackageError as error:
        need(False, f"no kernel for a Linux guest: {error}")
        raise
    with linux_guest(plan) as guest:
        guest.wait_ready()
        guest.start_destination()
        yield guest


def reads_of(guest: LinuxGuest) -> dict[str, tuple[int, int]]:
    """How many reads each disk has done, and how many nanoseconds they took in all."""
    return {
        entry["device"]: (entry["stats"]["rd_operations"], entry["stats"]["rd_total_time_ns"])
        for entry in guest.source.monitor.execute("query-blockstats")
    }


def enter(stack: contextlib.ExitStack, part: contextlib.AbstractContextManager[T]) -> T:
    """Enter a part of the lab, or skip when this host cannot have it."""
    try:
        return stack.enter_context(part)
    except LabError as error:
        need(False, str(error))
        raise


def usable_modes(binary: QemuBinary) -> list[str]:
    return [aio for aio in AIO_MODES if why_not(binary, aio) is None]


def need_aio(binary: QemuBinary, aio: str) -> None:
    reason = why_not(binary, aio)
    need(reason is None, f"QEMU {binary.version_text} cannot do aio={aio} here: {reason}")


def name_of(aio: str) -> str:
    """The disk's name: no underscore is allowed in QEMU's ids."""
    return aio.replace("_", "-")
