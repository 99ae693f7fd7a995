"""The doctor's look at this host and at a guest. Everything is tried or asked; nothing is changed.

Verdicts come from what was found by plain functions, which tests call with findings of their own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from pageferry.kernel import host, procfs
from pageferry.kernel.cgroup import MemoryCgroup, memory_cgroup_of
from pageferry.kernel.host import SwapDevice
from pageferry.kernel.probe_result import ProbeResult
from pageferry.kernel.probes import probe
from pageferry.kernel.residency import choose_reader, residency, summary
from pageferry.migration.guest_ram import (
    close_guest_ram,
    open_guest_ram,
    refuse_other_users,
    refuse_tracked,
)
from pageferry.model.errors import KernelFeatureError, PageferryError, RefusedError
from pageferry.model.parameters import RESIDENCY_WAYS
from pageferry.model.residency import ResidencyBytes
from pageferry.model.verdict import Check, Room, Verdict
from pageferry.policy.window import SMALLEST_WINDOW_BYTES
from pageferry.qemu.look import GuestView, look
from pageferry.qemu.monitor import open_monitor
from pageferry.qemu.refusals import NEEDED_CAPABILITIES, Side, reasons_against

MIB: Final = 1 << 20

NEEDED_PROBES: Final = {
    "userfaultfd-wp-async": "boot Linux 6.7 or newer, with CONFIG_USERFAULTFD",
    "pagemap-scan": "boot Linux 6.7 or newer",
    "userfaultfd-injection": "run pageferryd as root, or give it CAP_SYS_PTRACE; allow ptrace"
    " (kernel.yama.ptrace_scope below 3)",
    "memory-cgroup": "mount the memory controller under /sys/fs/cgroup, writable for pageferryd",
}
"""Probes without which nothing works, each with its fix; what the others find only degrades."""

PTRACE, DAC_OVERRIDE = "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"

PRIVILEGES: Final = {PTRACE: host.CAP_SYS_PTRACE, DAC_OVERRIDE: host.CAP_DAC_OVERRIDE}
"""All that the agent needs, as root; the units have just these (docs/deployment.md)."""

FULL_SWAP_SHARE: Final = 0.9
"""Of swap in use, from where cold pages that arrive may find no room."""


async def check_host() -> list[Check]:
    """The kernel and this host. Takes some 50 ms, and pages 256 KiB of its own out."""
    results = await trio.to_thread.run_sync(probe)
    return [
        *kernel_checks(results),
        *privilege_checks(host.effective_capabilities()),
        *swap_checks(host.swap_devices(), zswap=host.zswap_is_on()),
        *memory_checks(procfs.host_headroom_bytes(), host.free_bytes_on("/dev/shm")),
    ]


def kernel_checks(results: Sequence[ProbeResult]) -> list[Check]:
    """The probes' findings, judged."""
    found = [
        _judged(result, result.name in NEEDED_PROBES)
        for result in results
        if result.name not in RESIDENCY_WAYS
    ]
    kernel = Check("kernel", "release", Verdict.OK, f"Linux {host.kernel_release()}")
    return [kernel, *found, *residency_checks(results)]


def _judged(result: ProbeResult, needed: bool) -> Check:
    if result.supported:
        return Check("kernel", result.name, Verdict.OK, result.reason)
    verdict = Verdict.BLOCKED if needed else Verdict.DEGRADED
    # What is no need of ours says in its reason what would change it.
    fix = NEEDED_PROBES.get(result.name, FIXES.get(result.name, ""))
    return Check("kernel", result.name, verdict, f"{result.degree}: {result.reason}", fix)


FIXES: Final = {
    "page-out": "switch swap on (swapon); on a host without it cold pages stay in memory where they"
    " arrive",
}


def residency_checks(results: Sequence[ProbeResult]) -> list[Check]:
    """The ways to tell who is swapped: the best that works counts, those behind it do not."""
    found = []
    in_use: str | None = None
    for result in sorted(
        (each for each in results if each.name in RESIDENCY_WAYS),
        key=lambda each: RESIDENCY_WAYS.index(each.name),
    ):
        name = f"residency by {result.name}"
        if result.supported and in_use is None:
            in_use = result.name
            exact = result.name != "mincore"
            found.append(
                Check(
                    "kernel",
                    name,
                    Verdict.OK if exact else Verdict.DEGRADED,
                    f"{result.reason}; in use" + ("" if exact else ", approximate"),
                    "" if exact else "boot Linux 6.5 or newer, which has cachestat(2)",
                )
            )
        else:
            state = result.reason if result.supported else f"{result.degree}: {result.reason}"
            found.append(Check("kernel", name, Verdict.OK, state))
    if in_use is None:
        fix = "see each way's reason; as root, one of them always works"
        found.append(
            Check("kernel", "residency", Verdict.BLOCKED, "no way to tell who is swapped", fix)
        )
    return found


def privilege_checks(capabilities: int) -> list[Check]:
    """The capabilities of this process."""
    missing = [
        name for name, number in PRIVILEGES.items() if not host.has_capability(capabilities, number)
    ]
    if PTRACE in missing:
        fix = "run pageferryd as root, or give it AmbientCapabilities in its unit"
        found = f"{' and '.join(missing)} missing"
        return [Check("host", "capabilities", Verdict.BLOCKED, found, fix)]
    if missing:
        fix = "run pageferryd as root, or as the user that the guests' QEMUs run as"
        found = f"{DAC_OVERRIDE} missing: QEMUs of other users cannot be reached"
        return [Check("host", "capabilities", Verdict.DEGRADED, found, fix)]
    return [Check("host", "capabilities", Verdict.OK, " and ".join(PRIVILEGES))]


def swap_checks(devices: Sequence[SwapDevice], *, zswap: bool) -> list[Check]:
    """Swap, and whether it is compressed memory."""
    kind = "zswap is on: what is paged out may stay in memory, compressed, for a while"
    compressed = Check("host", "zswap", Verdict.OK, kind if zswap else "off")
    if not devices:
        fix = "switch swap on, or accept that cold pages that arrive here stay in memory"
        none = Check("host", "swap", Verdict.DEGRADED, "no swap is on", fix, free_bytes=0)
        return [none, compressed]
    size = sum(device.size_bytes for device in devices)
    used = sum(device.used_bytes for device in devices)
    free = size - used
    names = ", ".join(device.path for device in devices)
    found = f"{_mib(used)} of {_mib(size)} in use ({names})"
    if any(device.is_zram for device in devices):
        found += "; zram: swap is memory"
    if used >= FULL_SWAP_SHARE * size:
        fix = "add swap: cold pages that arrive here may have to stay in memory"
        full = Check("host", "swap", Verdict.DEGRADED, found, fix, free_bytes=free)
        return [full, compressed]
    return [Check("host", "swap", Verdict.OK, found, free_bytes=free), compressed]


def room() -> Room:
    """What this host has free for guests that come."""
    return Room(
        procfs.host_headroom_bytes(),
        sum(device.size_bytes - device.used_bytes for device in host.swap_devices()),
        host.free_bytes_on("/dev/shm") or 0,
    )


def memory_checks(headroom_bytes: int, shm_free_bytes: int | None) -> list[Check]:
    """Room for a guest that comes here."""
    available = f"{_mib(headroom_bytes)} available"
    found = [Check("host", "memory", Verdict.OK, available, free_bytes=headroom_bytes)]
    if shm_free_bytes is not None:
        room = f"{_mib(shm_free_bytes)} free on /dev/shm"
        fix = "mount -o remount,size=… /dev/shm: guests' RAM files need room there"
        small = shm_free_bytes < 64 * MIB
        verdict = Verdict.DEGRADED if small else Verdict.OK
        said = fix if small else ""
        found.append(Check("host", "tmpfs", verdict, room, said, free_bytes=shm_free_bytes))
    return found


async def check_guest(name: str, qmp: Path, side: Side | None = None) -> list[Check]:
    """One guest: its QEMU, what keeps it from being carried, where it is charged. *side*: the one
    that it is to be on; else the one that it can be on."""
    try:
        async with open_monitor(str(qmp)) as monitor:
            view = await look(monitor)
            pid = monitor.peer_pid
            on_host = await trio.to_thread.run_sync(_on_host, name, pid, view)
    except PageferryError as error:
        return [_blocked(name, "qmp", error)]
    return [*qemu_checks(name, view, side), *on_host]


def qemu_checks(name: str, view: GuestView, side: Side | None = None) -> list[Check]:
    """What QEMU tells of a guest, judged."""
    side = side or side_of(view)
    version = ".".join(map(str, view.version))
    lacking = [each for each in NEEDED_CAPABILITIES if each not in view.capabilities]
    checks = [
        Check(
            "guest", "qemu", Verdict.OK, f"{version}, {view.machine_type}, {view.status}", "", name
        )
    ]
    if not lacking:
        able = f"has {', '.join(NEEDED_CAPABILITIES)}"
        checks.append(Check("guest", "migration capabilities", Verdict.OK, able, "", name))
    reasons = reasons_against(view, side)
    checks += [_blocked(name, "configuration", reason) for reason in reasons]
    if not reasons:
        found = f"can be carried, as a {side}"
        checks.append(Check("guest", "configuration", Verdict.OK, found, "", name))
    return checks


def side_of(view: GuestView) -> Side:
    """Which side of a migration this QEMU can be on: it waits for one, or it runs."""
    return "destination" if view.status == "inmigrate" else "source"


def _on_host(name: str, pid: int, view: GuestView) -> list[Check]:
    """What only the host knows of a guest. Runs in a thread."""
    checks = []
    needs = ResidencyBytes()
    try:
        blocks = open_guest_ram(pid, view.blocks, writable=False)
        try:
            if side_of(view) == "source":
                refuse_tracked(pid, blocks)
            refuse_other_users(pid, blocks)
            reader = choose_reader()
            for carried in blocks:
                needs += summary(*residency(carried.mapping, reader))
        finally:
            close_guest_ram(blocks)
    except (RefusedError, KernelFeatureError) as error:
        checks.append(_blocked(name, "ram", error))
    except OSError as error:
        fix = "run pageferryd as root, or as the user that QEMU runs as"
        found = f"its RAM cannot be looked at: {error.strerror}"
        checks.append(Check("guest", "ram", Verdict.BLOCKED, found, fix, name))
    else:
        found = (
            f"{_mib(needs.resident_bytes)} resident, {_mib(needs.swapped_bytes)} swapped,"
            f" {_mib(needs.hole_bytes)} never allocated"
        )
        checks.append(Check("guest", "ram", Verdict.OK, found, "", name, ram=needs))
    return [*checks, *_placement(name, pid, view)]


def _placement(name: str, pid: int, view: GuestView) -> list[Check]:
    try:
        theirs, ours = memory_cgroup_of(pid), memory_cgroup_of(os.getpid())
        headroom, limit = theirs.headroom_bytes(), theirs.limit_bytes()
        swap_limit = theirs.swap_limit_bytes()
    except KernelFeatureError as error:
        return [_blocked(name, "memory cgroup", error)]
    except OSError as error:
        found = f"cannot be read: {error.strerror}"
        fix = "let pageferryd read and write /sys/fs/cgroup"
        return [Check("guest", "memory cgroup", Verdict.BLOCKED, found, fix, name)]
    return [
        placement_check(name, theirs, ours, headroom, limit),
        *swap_room_checks(name, theirs, limit, swap_limit, view),
    ]


def placement_check(
    name: str, theirs: MemoryCgroup, ours: MemoryCgroup, headroom: int | None, limit: int | None
) -> Check:
    """Where a guest's memory is charged, judged."""
    found = f"{theirs.path} (version {theirs.version})"
    if limit is None:
        found += ", no limit"
    else:
        found += f", limit {_mib(limit)}, room for {_mib(headroom or 0)}"
    if theirs.path == ours.path:
        fix = "give each guest a cgroup of its own (systemd-run --scope, or a machine slice)"
        found += "; the same as pageferryd's"
        return Check("guest", "memory cgroup", Verdict.DEGRADED, found, fix, name)
    if headroom is not None and headroom < SMALLEST_WINDOW_BYTES:
        # Charged to the guest's cgroup, a page-in then pushes out another page of the guest's.
        found += "; at its limit: the smallest page-in window is used"
    return Check("guest", "memory cgroup", Verdict.OK, found, "", name)


def swap_room_checks(
    name: str, theirs: MemoryCgroup, limit: int | None, swap_limit: int | None, view: GuestView
) -> list[Check]:
    """Whether the guest's cgroup lets its cold pages go to swap; nothing where they may.

    A destination that has to keep all of them in less memory than its RAM would be killed for it.
    """
    if swap_limit != 0:
        return []
    ram_bytes = sum(block.length_bytes for block in view.blocks)
    kills = side_of(view) == "destination" and limit is not None and limit < ram_bytes
    if theirs.version == 2:
        found = f"memory.swap.max of {theirs.path} or above is 0: its cold pages stay in memory"
        fix = "raise MemorySwapMax= (memory.swap.max), for libvirt <swap_hard_limit>"
    else:
        found = f"{theirs.path} may not have more in memory and swap together than in memory"
        fix = "raise memory.memsw.limit_in_bytes above memory.limit_in_bytes, by as much as is cold"
    if kills:
        found += f", with a limit of {_mib(limit or 0)} for {_mib(ram_bytes)} of RAM"
    verdict = Verdict.BLOCKED if kills else Verdict.DEGRADED
    return [Check("guest", "paging out", verdict, found, fix, name)]


def _blocked(name: str, what: str, error: PageferryError) -> Check:
    return Check("guest", what, Verdict.BLOCKED, error.message, error.advice, name)


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / MIB:.0f} MiB"
