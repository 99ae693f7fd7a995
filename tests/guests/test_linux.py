"""The Linux guest and its disks: it notices a single wrong stamp, on disk or in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path

import pytest

from pageferry.model.blocks import PAGE_BYTES
from pageferry.testing.lab.disks import (
    AIO_MODES,
    SECTOR_BYTES,
    STAMP,
    LabDisk,
    pattern_image,
    salt_of,
    why_not,
)
from pageferry.testing.lab.late import late_file
from pageferry.testing.lab.linux_guest import LinuxGuest, LinuxPlan, linux_guest
from pageferry.testing.lab.packages import QemuBinary
from tests.support import need

pytestmark = pytest.mark.qemu

MIB = 1024 * 1024
DISK_MIB = 16


@pytest.fixture
def guest(qemu_binary: QemuBinary) -> Iterator[LinuxGuest]:
    """A booted Linux guest with one disk for each kind of asynchronous I/O."""
    modes = [aio for aio in AIO_MODES if why_not(qemu_binary, aio) is None]
    names = [aio.replace("_", "-") for aio in modes]
    disks = [
        LabDisk(name, pattern_image(name, DISK_MIB), aio)
        for name, aio in zip(names, modes, strict=True)
    ]
    with linux_guest(LinuxPlan(qemu_binary, tuple(disks), ram_mib=192)) as guest:
        guest.wait_ready()
        yield guest


def change_pages(guest: LinuxGuest, wanted: tuple[int, int], stamp: tuple[int, int]) -> int:
    """Write a stamp over the last one of each page that begins with `wanted`. Returns the pages."""
    path = guest.source.ram_path
    assert path is not None
    changed = 0
    with path.open("r+b") as ram:
        for offset in range(0, path.stat().st_size, PAGE_BYTES):
            ram.seek(offset)
            if STAMP.unpack(ram.read(STAMP.size)) == wanted:
                ram.seek(offset + PAGE_BYTES - STAMP.size)
                ram.write(STAMP.pack(*stamp))
                changed += 1
    return changed


def test_reads_its_disks_through_the_cache_and_finds_one_wrong_stamp(guest: LinuxGuest) -> None:
    guest.read_disks(threads=2, chunk_kib=64, keep_mib=8)
    guest.wait_blocks(2 * DISK_MIB * MIB // PAGE_BYTES)
    guest.command("stop")
    for name, check in guest.check_disks().items():
        # What was read 8 MiB ago has been dropped; reads under way at that moment add to it.
        assert 8 * MIB // PAGE_BYTES <= check.cached < 9 * MIB // PAGE_BYTES
        assert check.bad == 0
        assert guest.disks[name].bad == 0

    name = guest.plan.disks[0].name
    block = spoil_a_cached_block(guest, name)
    assert guest.check_disks()[name].bad == 1
    assert any(f"B disk={name} block={block} holds salt=1 sector=2" in each for each in guest.lines)


def spoil_a_cached_block(guest: LinuxGuest, name: str) -> int:
    """Change a block in the page cache, half of which is cached, and all copies of it in memory."""
    for block in range(DISK_MIB * MIB // PAGE_BYTES):
        sector = block * PAGE_BYTES // SECTOR_BYTES
        if change_pages(guest, (salt_of(name), sector), (1, 2)) and guest.check_disks()[name].bad:
            return block
    raise AssertionError("no block is cached")


def test_a_page_of_memory_that_fell_back_is_found(guest: LinuxGuest) -> None:
    guest.write_memory(mib=4)
    before = guest.verify_memory()
    deadline = time.monotonic() + 30
    while guest.verify_memory().generation < before.generation + 3:
        assert time.monotonic() < deadline
    guest.command("still")
    found = guest.verify_memory()
    assert (found.pages, found.bad) == (4 * MIB // PAGE_BYTES, 0)
    # Page 7 is of this generation or, when the pass has not got there, of the one before.
    changed = sum(
        change_pages(guest, (7, generation), (7, generation - 2))
        for generation in (found.generation, found.generation - 1)
    )
    assert changed == 1
    assert guest.verify_memory().bad == 1


def read_directly(path: Path, offset: int) -> bytes:
    """Read a page past the cache."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap(-1, PAGE_BYTES) as page:
            assert os.preadv(descriptor, [page], offset) == PAGE_BYTES
            return page[:]
    finally:
        os.close(descriptor)


@pytest.mark.root
def test_a_late_file_answers_each_read_late_however_many_there_are() -> None:
    need(os.path.exists("/dev/fuse"), "needs /dev/fuse")
    image = pattern_image("probe", 1)
    offsets = range(0, 64 * PAGE_BYTES, PAGE_BYTES)
    with late_file(image, 200) as late, ThreadPoolExecutor(len(offsets)) as pool:
        assert late.stat().st_size == image.stat().st_size
        began_s = time.monotonic()
        pages = list(pool.map(lambda offset: read_directly(late, offset), offsets))
        took_s = time.monotonic() - began_s
    assert b"".join(pages) == image.read_bytes()[: 64 * PAGE_BYTES]
    # One after the other they would take 12.8 s.
    assert 0.2 <= took_s < 5
    assert not late.exists()
