"""Why a guest cannot be carried, by what QEMU tells of it. Pure.

Each reason names the thing and what to do about it, and none has touched anything. What QEMU does
not tell (who else maps the RAM, what file system it lies on) is judged in migration/guest_ram.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.errors import RefusedError
from pageferry.qemu.look import GuestBlock, GuestView

Side = Literal["source", "destination"]

NEEDED_CAPABILITIES = ("x-ignore-shared", "return-path", "events", "pause-before-switchover")

MEMFD_CARRIED_BEFORE = (8, 1, 0)
"""Since QEMU 8.1 x-ignore-shared leaves out only shared RAM that is a named file; it would send a
memfd itself, every page of it."""

FILE_ADVICE = (
    "start QEMU with -object memory-backend-file,id={id},size={size},mem-path=/dev/shm/NAME,"
    "share=on -machine memory-backend={id}"
)

DIRECT_WRITERS = {
    "vfio-": "a VFIO device writes guest RAM by DMA, which no tracker on the host sees",
    "vhost-user-": "a vhost-user back-end writes guest RAM through a mapping of its own",
    "vhost-vdpa-": "a vDPA device writes guest RAM by DMA",
    "pvrdma": "an RDMA device pins guest RAM and writes it by DMA",
    "ivshmem-": "memory shared with other machines is written by them",
    "virtio-mem": "it plugs and unplugs RAM by itself, which cannot be followed yet",
    "virtio-pmem": "its memory is written by the host's file system",
}
"""Prefixes of device types that keep a guest from being carried, and why."""

DIRECT_DRIVERS = {
    "nvme": "the userspace NVMe driver maps guest RAM for DMA",
    "nvme-io_uring": "libblkio registers guest RAM for I/O that is not seen",
    "io_uring": "libblkio registers guest RAM for I/O that is not seen",
    "virtio-blk-vfio-pci": "it maps guest RAM for DMA",
    "virtio-blk-vhost-user": "its back-end maps guest RAM",
    "virtio-blk-vhost-vdpa": "it maps guest RAM for DMA",
}
"""Block drivers that do, and why."""

STATE_ADVICE = {
    "inmigrate": "it is itself waiting for a migration; migrate from the host where it runs",
    "postmigrate": "it has been migrated away already; nothing is left to do here",
    "guest-panicked": "reset or restart the guest first",
    "internal-error": "reset or restart the guest first",
    "io-error": "mend its storage and `cont` it first",
    "shutdown": "it has shut down; start it anew on the other host instead",
    "prelaunch": "let it run (`cont`) first, or start it on the other host instead",
    "suspended": "wake it up (`system_wakeup`) first",
    "debug": "let the debugger continue it first",
    "watchdog": "`cont` or reset it first",
}


def reasons_against(view: GuestView, side: Side) -> list[RefusedError]:
    """All reasons of QEMU's side, most telling first; empty when there is none."""
    reasons = [*_state(view, side), *_blocks(view), *_capabilities(view)]
    if side == "source":
        reasons += [*_devices(view), *_drivers(view), *_blocked(view)]
    return reasons


def _state(view: GuestView, side: Side) -> Iterator[RefusedError]:
    if side == "destination":
        if view.status != "inmigrate" or view.migration_status not in ("none", "setup"):
            yield RefusedError(
                f"the destination QEMU is in state {view.status}"
                f" (migration {view.migration_status}), not waiting for a guest",
                advice="start it with -incoming defer -S",
            )
        return
    if view.status not in ("running", "paused"):
        yield RefusedError(
            f"the guest is in state {view.status}, in which it cannot be migrated",
            advice=STATE_ADVICE.get(view.status, "bring it to running or paused first"),
        )
    if view.migration_status in ("setup", "active", "pre-switchover", "device", "cancelling"):
        yield RefusedError(
            f"QEMU is migrating the guest already (status {view.migration_status})",
            advice="wait for that migration to end, or `migrate_cancel` it",
        )


def _blocks(view: GuestView) -> Iterator[RefusedError]:
    if not view.blocks:
        yield RefusedError(
            "QEMU shows no RAM block of a memory backend",
            advice=FILE_ADVICE.format(id="mem0", size="SIZE"),
        )
    for block in view.blocks:
        yield from _block(block, view.version)


def _block(block: GuestBlock, version: tuple[int, int, int]) -> Iterator[RefusedError]:
    file_advice = FILE_ADVICE.format(id=block.backend_id, size=block.length_bytes)
    if block.page_bytes != PAGE_BYTES:
        yield RefusedError(
            f"RAM block {block.name} uses pages of {block.page_bytes} bytes (hugetlb), which are"
            " never swapped",
            advice="hugetlb guests cannot be carried yet; use QEMU's own migration",
        )
    elif block.backend_type not in ("memory-backend-file", "memory-backend-memfd"):
        yield RefusedError(
            f"RAM block {block.name} is private memory of QEMU ({block.backend_type})",
            advice=file_advice,
        )
    elif not block.shared:
        yield RefusedError(
            f"RAM block {block.name} ({block.backend_type}) is not shared", advice=file_advice
        )
    elif block.backend_type == "memory-backend-memfd" and version >= MEMFD_CARRIED_BEFORE:
        yield RefusedError(
            f"RAM block {block.name} is a memfd, which QEMU {version[0]}.{version[1]} would send"
            " itself: since 8.1 x-ignore-shared leaves out only RAM that is a named file",
            advice=file_advice,
        )


def _capabilities(view: GuestView) -> Iterator[RefusedError]:
    missing = [name for name in NEEDED_CAPABILITIES if name not in view.capabilities]
    if missing:
        yield RefusedError(
            f"this QEMU ({'.'.join(map(str, view.version))}) has no migration capability"
            f" {', '.join(missing)}",
            advice="use QEMU 7.2 or newer",
        )


def _devices(view: GuestView) -> Iterator[RefusedError]:
    for kind in sorted(view.device_types):
        for prefix, why in DIRECT_WRITERS.items():
            if kind.startswith(prefix):
                yield RefusedError(
                    f"the guest has a device {kind}: {why}",
                    advice="unplug the device (`device_del`) before migrating",
                )


def _drivers(view: GuestView) -> Iterator[RefusedError]:
    for driver in sorted(view.block_drivers & DIRECT_DRIVERS.keys()):
        yield RefusedError(
            f"a disk of the guest uses the block driver {driver}: {DIRECT_DRIVERS[driver]}",
            advice="use host_device or file for that disk",
        )


def _blocked(view: GuestView) -> Iterator[RefusedError]:
    for reason in view.blocked_reasons:
        yield RefusedError(
            f"QEMU says that the guest cannot be migrated: {reason}",
            advice="remove what it names",
        )
    for job in view.jobs:
        yield RefusedError(
            f"a job is running on the guest's disks: {job}",
            advice="wait for it to end, or `job-cancel` it",
        )
