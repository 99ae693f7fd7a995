"""The doctor's verdicts, from findings of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pageferry.kernel import host
from pageferry.kernel.cgroup import MemoryCgroup
from pageferry.kernel.host import SwapDevice
from pageferry.kernel.probe_result import Degree, ProbeResult
from pageferry.migration.checkup import (
    NEEDED_PROBES,
    kernel_checks,
    memory_checks,
    placement_check,
    privilege_checks,
    qemu_checks,
    residency_checks,
    swap_checks,
    swap_room_checks,
)
from pageferry.model.verdict import Check, Verdict
from pageferry.qemu.look import GuestBlock, GuestView
from pageferry.qemu.refusals import NEEDED_CAPABILITIES

GIB = 1 << 30


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def probes(**degrees: Degree) -> list[ProbeResult]:
    return [ProbeResult(name.replace("_", "-"), d, f"{name} reason") for name, d in degrees.items()]


def test_missing_need_blocks_and_anything_else_degrades() -> None:
    for name, fix in NEEDED_PROBES.items():
        for degree in (Degree.ABSENT, Degree.DENIED):
            found = by_name(kernel_checks([ProbeResult(name, degree, "why")]))[name]
            assert (found.verdict, found.fix) == (Verdict.BLOCKED, fix)
            assert found.found == f"{degree}: why"
    others = by_name(kernel_checks(probes(page_out=Degree.ABSENT, new_thing=Degree.ABSENT)))
    assert others["page-out"].verdict is Verdict.DEGRADED
    assert others["new-thing"].verdict is Verdict.DEGRADED
    assert by_name(kernel_checks(probes(page_out=Degree.SUPPORTED)))["page-out"].fix == ""


@pytest.mark.parametrize(
    ("degrees", "verdicts"),
    [
        (("supported", "supported", "supported"), ("ok", "ok", "ok")),
        (("absent", "supported", "supported"), ("ok", "ok", "ok")),
        (("absent", "denied", "supported"), ("ok", "ok", "degraded")),
        (("absent", "absent", "denied"), ("ok", "ok", "ok", "blocked")),
    ],
)
def test_best_way_that_works_decides(degrees: tuple[str, ...], verdicts: tuple[str, ...]) -> None:
    ways = ("mincore", "pagemap", "cachestat")  # whatever order they come in
    order = {"pagemap": 0, "cachestat": 1, "mincore": 2}
    results = [ProbeResult(way, Degree(degrees[order[way]]), "why") for way in ways]
    assert tuple(check.verdict for check in residency_checks(results)) == verdicts


def test_capabilities() -> None:
    both = 1 << host.CAP_SYS_PTRACE | 1 << host.CAP_DAC_OVERRIDE
    assert privilege_checks(both)[0].verdict is Verdict.OK
    (found,) = privilege_checks(1 << host.CAP_DAC_OVERRIDE)
    assert found.verdict is Verdict.BLOCKED
    assert found.found == "CAP_SYS_PTRACE missing"
    (found,) = privilege_checks(1 << host.CAP_SYS_PTRACE)
    assert found.verdict is Verdict.DEGRADED
    assert "CAP_DAC_OVERRIDE missing" in found.found


def test_swap_none_some_and_nearly_full() -> None:
    disk = SwapDevice("/dev/vda2", "partition", 8 * GIB, 1 * GIB)
    full = SwapDevice("/swapfile", "file", 8 * GIB, 8 * GIB)
    zram = SwapDevice("/dev/zram0", "partition", GIB, 0)
    assert by_name(swap_checks([], zswap=False))["swap"].verdict is Verdict.DEGRADED
    assert by_name(swap_checks([disk], zswap=True))["swap"].verdict is Verdict.OK
    assert "zswap is on" in by_name(swap_checks([disk], zswap=True))["zswap"].found
    assert by_name(swap_checks([full], zswap=False))["swap"].verdict is Verdict.DEGRADED
    assert "zram" in by_name(swap_checks([zram], zswap=False))["swap"].found


def test_room_on_tmpfs() -> None:
    assert by_name(memory_checks(GIB, GIB))["tmpfs"].verdict is Verdict.OK
    assert by_name(memory_checks(GIB, 1 << 20))["tmpfs"].verdict is Verdict.DEGRADED
    assert "tmpfs" not in by_name(memory_checks(GIB, None))


def view(**changes: Any) -> GuestView:
    block = GuestBlock(
        name="mem0",
        length_bytes=GIB,
        page_bytes=4096,
        backend_id="mem0",
        backend_type="memory-backend-file",
        shared=True,
        mem_path="/dev/shm/x",
        host_address=4096,
    )
    values: dict[str, Any] = {
        "version": (10, 0, 2),
        "name": "web",
        "status": "running",
        "machine_type": "pc-q35-10.0",
        "blocks": (block,),
        "migration_status": "none",
        "blocked_reasons": (),
        "capabilities": frozenset(NEEDED_CAPABILITIES),
        "device_types": frozenset(),
        "block_drivers": frozenset(),
        "jobs": (),
        "vcpu_threads": (),
        **changes,
    }
    return GuestView(**values)


def test_guest_that_can_be_carried() -> None:
    found = by_name(qemu_checks("web", view()))
    assert {check.verdict for check in found.values()} == {Verdict.OK}
    assert found["configuration"].found == "can be carried, as a source"
    assert all(check.guest == "web" for check in found.values())


def test_guest_that_cannot_comes_with_every_reason_and_its_fix() -> None:
    broken = view(device_types=frozenset({"vfio-pci"}), capabilities=frozenset())
    checks = [each for each in qemu_checks("web", broken) if each.verdict is Verdict.BLOCKED]
    assert len(checks) == 2
    assert any("vfio-pci" in check.found for check in checks)
    assert all(check.fix for check in checks)
    assert "migration capabilities" not in by_name(qemu_checks("web", broken))


def test_waiting_qemu_is_judged_as_a_destination() -> None:
    found = by_name(qemu_checks("web", view(status="inmigrate")))
    assert found["configuration"].found == "can be carried, as a destination"


def test_placement() -> None:
    theirs = MemoryCgroup(2, Path("/sys/fs/cgroup/machine/web"), Path("/sys/fs/cgroup"))
    ours = MemoryCgroup(2, Path("/sys/fs/cgroup/system/pageferryd"), Path("/sys/fs/cgroup"))
    found = placement_check("web", theirs, ours, 64 << 20, 256 << 20)
    assert found.verdict is Verdict.OK
    assert "limit 256 MiB, room for 64 MiB" in found.found
    assert "smallest page-in window" in placement_check("web", theirs, ours, 0, GIB).found
    assert placement_check("web", ours, ours, None, None).verdict is Verdict.DEGRADED


@pytest.mark.parametrize("version", [1, 2])
def test_cgroup_that_forbids_swap(version: int) -> None:
    theirs = MemoryCgroup(version, Path("/sys/fs/cgroup/machine/web"), Path("/sys/fs/cgroup"))
    running, waiting = view(), view(status="inmigrate")
    assert swap_room_checks("web", theirs, GIB // 2, None, waiting) == []
    assert swap_room_checks("web", theirs, GIB // 2, 4096, waiting) == []
    for limit, whose, verdict in (
        (GIB // 2, waiting, Verdict.BLOCKED),
        (GIB // 2, running, Verdict.DEGRADED),
        (2 * GIB, waiting, Verdict.DEGRADED),
        (None, waiting, Verdict.DEGRADED),
    ):
        (found,) = swap_room_checks("web", theirs, limit, 0, whose)
        assert (found.verdict, found.guest) == (verdict, "web")
        assert ("memory.swap.max" if version == 2 else "memory.memsw.limit_in_bytes") in found.fix


def test_swap_devices_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "swaps"
    file.write_text(
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/zram0                              partition\t1024\t\t0\t\t100\n"
        "/swap\\040file                          file\t\t2048\t\t512\t\t-2\n"
    )
    zram, disk = host.swap_devices(file)
    assert zram.is_zram
    assert disk == SwapDevice("/swap file", "file", 2 << 20, 512 << 10)
    (tmp_path / "enabled").write_text("Y\n")
    assert host.zswap_is_on(tmp_path / "enabled")
    assert not host.zswap_is_on(tmp_path / "nowhere")


def test_own_capabilities_are_read(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000280000\n")
    found = host.effective_capabilities(status)
    assert host.has_capability(found, host.CAP_SYS_PTRACE)
    assert host.has_capability(found, host.CAP_SYS_ADMIN)
    assert not host.has_capability(found, host.CAP_SYS_NICE)
