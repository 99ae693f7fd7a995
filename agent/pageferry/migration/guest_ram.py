"""Where the guest's RAM lies: from QEMU's RAM blocks to mapped files, and who else maps them.

Everything here only looks. All of it runs in a thread: it reads /proc and may take a while on a
host with many processes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio

from pageferry.kernel import procfs
from pageferry.kernel.injection import PRIVILEGE_ADVICE
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.tracking import AddressRange, uffd_armed_ranges
from pageferry.model.blocks import PAGE_BYTES, RamBlock
from pageferry.model.errors import RefusedError
from pageferry.qemu.look import GuestBlock, GuestView
from pageferry.qemu.refusals import Side, reasons_against

SHARED_FILE_ADVICE = (
    "start QEMU with -object memory-backend-file,id=mem0,size=SIZE,mem-path=/dev/shm/NAME,share=on"
    " -machine memory-backend=mem0"
)


@dataclass(frozen=True, slots=True)
class BlockRange:
    """A part of a RAM block as QEMU maps it: addresses in QEMU, and the first page in the block."""

    addresses: AddressRange
    first_page: int


@dataclass(slots=True)
class CarriedBlock:
    """One RAM block that pageferry carries, with the agent's own mapping of its file."""

    block: RamBlock
    mapping: RamMapping
    ranges: tuple[BlockRange, ...]
    device: int
    inode: int


def open_guest_ram(pid: int, blocks: Sequence[GuestBlock], *, writable: bool) -> list[CarriedBlock]:
    """Open and map the file behind each block of QEMU process *pid*, in the blocks' order.

    *writable*: whether the mappings' descriptors are. Raises RefusedError, naming the block, when
    its RAM is not a file on tmpfs or hugetlb backs it. The caller closes the mappings.
    """
    carried: list[CarriedBlock] = []
    try:
        with _looking_at(pid):
            maps = procfs.maps_of(pid)
            for block in blocks:
                carried.append(_open_block(pid, block, maps, writable=writable))
    except BaseException:
        close_guest_ram(carried)
        raise
    return carried


@contextmanager
def _looking_at(pid: int) -> Iterator[None]:
    """What this process may not see of another is refused with what would help."""
    try:
        yield
    except PermissionError as error:
        raise RefusedError(
            f"QEMU process {pid} may not be looked at: {error}", advice=PRIVILEGE_ADVICE
        ) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise RefusedError(
            f"QEMU process {pid} has ended, or its memory changed meanwhile: {error}",
            advice="check that the guest still runs",
        ) from error


@asynccontextmanager
async def guest_ram(
    pid: int, view: GuestView, *, writable: bool
) -> AsyncIterator[list[CarriedBlock]]:
    """The guest's RAM, opened and mapped for as long as the block lasts. Raises RefusedError."""

    def open_all() -> list[CarriedBlock]:
        return open_guest_ram(pid, view.blocks, writable=writable)

    blocks = await trio.to_thread.run_sync(open_all)
    try:
        yield blocks
    finally:
        close_guest_ram(blocks)


def refuse(view: GuestView, side: Side) -> None:
    """Raise the first of QEMU's reasons against carrying this guest, with the others beside it."""
    reasons = reasons_against(view, side)
    if not reasons:
        return
    first = reasons[0]
    if len(reasons) > 1:
        also = "; ".join(reason.message for reason in reasons[1:])
        raise RefusedError(f"{first.message} (also: {also})", advice=first.advice)
    raise first


def close_guest_ram(blocks: Sequence[CarriedBlock]) -> None:
    """Unmap and close what open_guest_ram opened."""
    for carried in blocks:
        carried.mapping.close()


def _open_block(
    pid: int, block: GuestBlock, maps: Sequence[procfs.MapEntry], *, writable: bool
) -> CarriedBlock:
    entry = _entry_of(block, maps)
    if "s" not in entry.perms:
        raise RefusedError(
            f"RAM block {block.name} is mapped privately by QEMU, so its pages cannot be shared",
            advice=SHARED_FILE_ADVICE,
        )
    start = entry.offset + (block.host_address or entry.start) - entry.start
    fd = procfs.open_ram_file(pid, entry, writable=writable)
    try:
        if procfs.is_hugetlb(fd):
            raise RefusedError(
                f"RAM block {block.name} lies on hugetlb pages, which are never swapped",
                advice="hugetlb guests cannot be carried yet; use QEMU's own migration",
            )
        if not procfs.is_shmem(fd):
            raise RefusedError(
                f"RAM block {block.name} lies in {entry.path}, which is not on tmpfs",
                advice=SHARED_FILE_ADVICE,
            )
        _check_length(fd, block, start)
        mapping = RamMapping(fd, start, block.length_bytes)
    finally:
        os.close(fd)
    ranges = tuple(_ranges_of(block, entry, start, maps))
    return CarriedBlock(
        RamBlock(block.name, block.length_bytes), mapping, ranges, entry.dev, entry.inode
    )


def _check_length(fd: int, block: GuestBlock, start: int) -> None:
    size = os.fstat(fd).st_size
    if size < start + block.length_bytes:
        raise RefusedError(
            f"the file behind RAM block {block.name} ends at {size} bytes, before the block does",
            advice="check what truncated it; the guest will crash when it touches the missing part",
        )


def _entry_of(block: GuestBlock, maps: Sequence[procfs.MapEntry]) -> procfs.MapEntry:
    """The mapping that holds the block's first byte."""
    if block.host_address is not None:
        for entry in maps:
            if entry.start <= block.host_address < entry.end:
                return entry
    elif block.mem_path is not None:
        for entry in maps:
            if entry.path == block.mem_path:
                return entry
    raise RefusedError(
        f"RAM block {block.name} was not found among QEMU's mappings",
        advice="check that the QMP socket belongs to the QEMU process itself",
    )


def _ranges_of(
    block: GuestBlock,
    first: procfs.MapEntry,
    start: int,
    maps: Sequence[procfs.MapEntry],
) -> list[BlockRange]:
    """Every mapping of the block's part of the file: a block can be split over several."""
    end = start + block.length_bytes
    ranges = []
    for entry in maps:
        if (entry.dev, entry.inode) != (first.dev, first.inode):
            continue
        low = max(start, entry.offset)
        high = min(end, entry.offset + entry.end - entry.start)
        if low >= high:
            continue
        address = entry.start + low - entry.offset
        ranges.append(
            BlockRange(AddressRange(address, address + high - low), (low - start) // PAGE_BYTES)
        )
    covered = sum(part.addresses.end - part.addresses.start for part in ranges)
    if covered < block.length_bytes:
        raise RefusedError(
            f"QEMU maps only {covered} of the {block.length_bytes} bytes of RAM block {block.name}",
            advice="this layout of guest RAM cannot be carried; use QEMU's own migration",
        )
    return ranges


def refuse_tracked(pid: int, blocks: Sequence[CarriedBlock]) -> None:
    """Raise RefusedError when a userfaultfd is already on guest RAM: it takes only one."""
    with _looking_at(pid):
        armed = uffd_armed_ranges(pid)
    for carried in blocks:
        for part in carried.ranges:
            if any(_overlap(part.addresses, other) for other in armed):
                raise RefusedError(
                    f"RAM block {carried.block.name} is under another userfaultfd (a post-copy or"
                    " background-snapshot migration, or another tracker)",
                    advice="let that end first, then migrate",
                )


def _overlap(one: AddressRange, other: AddressRange) -> bool:
    return one.start < other.end and other.start < one.end


def refuse_other_users(pid: int, blocks: Sequence[CarriedBlock]) -> None:
    """Raise RefusedError when a process other than QEMU maps the RAM, or a device is assigned.

    What writes guest RAM around QEMU's page tables is invisible to write tracking: a vhost-user
    back-end through its own mapping, VFIO and vDPA devices by DMA.
    """
    with _looking_at(pid):
        links = procfs.fd_links(pid)
    for link in links:
        device = _direct_writer(link)
        if device:
            raise RefusedError(
                f"QEMU holds {link}: {device} writes guest RAM without anyone seeing it",
                advice="unplug the device before migrating",
            )
    for carried in blocks:
        mappers = procfs.other_mappers(carried.device, carried.inode, exclude={pid, os.getpid()})
        if mappers:
            names = ", ".join(f"{comm} (pid {other})" for other, comm in mappers)
            raise RefusedError(
                f"RAM block {carried.block.name} is also mapped by {names}, whose writes cannot be"
                " tracked (a vhost-user back-end, or another migration)",
                advice="stop that process or remove its device from the guest before migrating",
            )


def _direct_writer(link: str) -> str | None:
    if link.startswith("/dev/vfio/") or "vfio-device" in link:
        return "a VFIO device"
    if link.startswith("/dev/vhost-vdpa"):
        return "a vDPA device"
    if link.startswith("/dev/infiniband/"):
        return "an RDMA device"
    return None
