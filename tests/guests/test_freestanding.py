"""The freestanding guest and the lab around it: it notices a single wrong word, wherever it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pageferry.model.blocks import PAGE_BYTES
from pageferry.testing.lab.cgroups import hierarchy, memory_cgroup
from pageferry.testing.lab.guests import FreestandingGuest, GuestPlan, freestanding_guest
from pageferry.testing.lab.hosts import SHM, ram_file, swap_traffic
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.qemus import LabQemu
from pageferry.testing.lab.swap import SwapArea, swap_entries, swap_file

pytestmark = pytest.mark.qemu

MIB = 1024 * 1024


def small_plan(binary: QemuBinary) -> GuestPlan:
    return GuestPlan(binary, ram_mib=64, cold_mib=24, hot_mib=4, zero_mib=4)


@pytest.fixture
def small_guest(newest_qemu: QemuBinary) -> Iterator[FreestandingGuest]:
    with freestanding_guest(small_plan(newest_qemu)) as guest:
        guest.wait_ready()
        yield guest


def overwrite(guest: FreestandingGuest, address: int, data: bytes) -> None:
    """Change guest memory behind the guest's back."""
    path = guest.source.ram_path
    assert path is not None
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert os.pwrite(descriptor, data, address) == len(data)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_boots_and_verifies_on_both_machines(qemu_binary: QemuBinary, machine: str) -> None:
    plan = replace(small_plan(qemu_binary), machine=machine)
    with freestanding_guest(plan) as guest:
        layout = guest.wait_ready()
        found = guest.verify()
    assert found.bad == 0
    assert found.pages == (24 + 4 + 4) * MIB // PAGE_BYTES
    assert layout.cold.pages == found.cold_pages == 24 * MIB // PAGE_BYTES


def test_memory_above_the_regions_stays_a_hole(small_guest: FreestandingGuest) -> None:
    residency = small_guest.source.residency()
    # Regions, first megabytes and firmware; the rest of the 64 MiB was never touched.
    assert residency.hole_bytes > 20 * MIB
    assert residency.resident_bytes >= 32 * MIB


def test_one_wrong_cold_word_is_found_and_named(small_guest: FreestandingGuest) -> None:
    address = small_guest.layout.cold.address + 1234 * PAGE_BYTES + 4092
    overwrite(small_guest, address, b"\xff\xff\xff\xff")
    found = small_guest.verify()
    assert (found.cold_bad, found.hot_bad, found.zero_bad) == (1, 0, 0)
    assert "region=cold page=1234" in found.details[0]
    assert "word=1023" in found.details[0]


def test_a_byte_in_a_zero_page_is_found(small_guest: FreestandingGuest) -> None:
    overwrite(small_guest, small_guest.layout.zero.address + 5 * PAGE_BYTES, b"\x01")
    assert small_guest.verify().zero_bad == 1


def test_a_stale_hot_page_is_found(small_guest: FreestandingGuest) -> None:
    path = small_guest.source.ram_path
    assert path is not None
    small_guest.command(b"s")
    small_guest.wait_samples(2)
    hot = small_guest.layout.hot
    old = path.read_bytes()[hot.address : hot.address + PAGE_BYTES]
    small_guest.command(b"r")
    generation = small_guest.samples[-1].generation
    while small_guest.wait_samples(1)[0].generation < generation + 3:
        pass
    small_guest.command(b"s")
    small_guest.wait_samples(2)
    overwrite(small_guest, hot.address, old)
    found = small_guest.verify()
    assert (found.hot_bad, found.bad) == (1, 1)


def test_hot_writes_go_on_and_are_timed(small_guest: FreestandingGuest) -> None:
    first, *_, last = small_guest.wait_samples(6)
    assert last.touches > first.touches
    assert last.generation > first.generation
    p99 = small_guest.hot_p99_us(first.host_time_s, last.host_time_s)
    assert p99 is not None
    assert 1 < p99 < 100_000


def test_without_a_pause_it_writes_faster(newest_qemu: QemuBinary) -> None:
    with freestanding_guest(replace(small_plan(newest_qemu), pace=0)) as guest:
        guest.wait_ready()
        first, *_, last = guest.wait_samples(6)
    # Paced it is 64 touches a millisecond, 32000 in 500 ms.
    assert last.touches - first.touches > 60_000


@pytest.mark.root
@pytest.mark.swap
@pytest.mark.parametrize("backend", ["file", "memfd"])
def test_settled_guest_has_its_cold_memory_in_swap_and_its_hot_resident(
    newest_qemu: QemuBinary, host_swap: SwapArea, backend: str
) -> None:
    plan = GuestPlan(newest_qemu, backend=backend, limit_mib=64)
    before = swap_traffic()
    with freestanding_guest(plan) as guest:
        guest.wait_ready()
        guest.settle()
        residency = guest.source.residency()
        assert guest.cold_resident_share() <= 0.01
        assert guest.hot_resident_share() >= 0.98
        assert residency.swapped_bytes >= 0.99 * 96 * MIB
        assert (swap_traffic() - before).out_bytes >= 0.9 * 96 * MIB
        found = guest.verify()
    assert (found.bad, found.pages) == (0, (96 + 16 + 8) * MIB // PAGE_BYTES)
    assert (swap_traffic() - before).in_bytes >= 0.9 * 96 * MIB


@pytest.mark.root
def test_everything_is_cleared_away_also_after_a_failure(newest_qemu: QemuBinary) -> None:
    started: list[LabQemu] = []

    def start_and_fail() -> None:
        with freestanding_guest(replace(small_plan(newest_qemu), limit_mib=64)) as guest:
            guest.wait_ready()
            started.append(guest.source)
            assert guest.source.cgroup is not None
            assert guest.source.cgroup.pids() == [guest.source.pid]
            raise RuntimeError

    with pytest.raises(RuntimeError):
        start_and_fail()
    (qemu,) = started
    assert qemu.ram_path is not None
    assert qemu.cgroup is not None
    assert not qemu.ram_path.exists()
    assert not qemu.cgroup.path.exists()
    assert not Path(f"/proc/{qemu.pid}").exists()


@pytest.mark.root
@pytest.mark.swap
def test_swap_file_is_switched_off_and_removed() -> None:
    with swap_file(64 * MIB) as area:
        assert area.device in {entry.device for entry in swap_entries()}
    assert area.device not in {entry.device for entry in swap_entries()}
    assert area.device is not None
    assert not Path(area.device).exists() or area.device.startswith("/dev/")


@pytest.mark.root
def test_leftovers_of_a_dead_lab_are_removed() -> None:
    # No process has this number: it is above the kernel's largest.
    dead = SHM / "pageferry-lab-4194305-1-x.ram"
    dead.touch()
    dead_group = hierarchy().mount / "pageferry-lab-4194305-1-x"
    dead_group.mkdir()
    with memory_cgroup("next", 16 * MIB), ram_file("next"):
        assert not dead_group.exists()
    assert not dead.exists()
