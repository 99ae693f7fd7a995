"""Packing against Python's own idea of what must come out."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.packing import Packer, Unpacker
from pageferry.kernel.pageset import Runs
from pageferry.model.blocks import PAGE_BYTES

PAGES = 256


@pytest.fixture
def source() -> Iterator[RamMapping]:
    fd = os.memfd_create("source")
    os.ftruncate(fd, PAGES * PAGE_BYTES)
    noise = random.Random(5)
    for page in range(PAGES):
        text = (f"page {page} " * 500).encode()[:PAGE_BYTES]
        os.pwrite(fd, noise.randbytes(PAGE_BYTES) if page % 3 == 0 else text, page * PAGE_BYTES)
    mapping = RamMapping(fd, 0, PAGES * PAGE_BYTES)
    os.close(fd)
    yield mapping
    mapping.close()


@pytest.fixture
def target_fd() -> Iterator[int]:
    fd = os.memfd_create("target")
    os.ftruncate(fd, PAGES * PAGE_BYTES)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("level", [-5, 1, 3, 12])
def test_every_page_comes_out_where_it_was(level: int, source: RamMapping, target_fd: int) -> None:
    runs = Runs.from_pairs([(0, 17), (40, 1), (100, 156)])
    packer, unpacker = Packer(PAGES), Unpacker(2 * PAGES * PAGE_BYTES, 16 * PAGE_BYTES)
    packed = packer.pack(source, runs, level)
    assert len(packed) < 0.6 * runs.pages * PAGE_BYTES
    unpacker.buffer(len(packed))[:] = packed
    unpacker.unpack(len(packed), target_fd, 0, runs)
    wanted = os.pread(source.fd, PAGES * PAGE_BYTES, 0)
    found = os.pread(target_fd, PAGES * PAGE_BYTES, 0)
    inside = {page for start, count in runs for page in range(start, start + count)}
    for page in range(PAGES):
        piece = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
        assert found[piece] == (wanted[piece] if page in inside else bytes(PAGE_BYTES))


def test_other_pages_than_announced_are_refused(source: RamMapping, target_fd: int) -> None:
    packer, unpacker = Packer(PAGES), Unpacker(PAGES * PAGE_BYTES, PAGE_BYTES)
    packed = packer.pack(source, Runs.from_pairs([(0, 8)]), 1)
    unpacker.buffer(len(packed))[:] = packed
    for wrong in ([(0, 7)], [(0, 9)]):
        with pytest.raises(ValueError, match="damaged"):
            unpacker.unpack(len(packed), target_fd, 0, Runs.from_pairs(wrong))
    with pytest.raises(ValueError, match="damaged"):
        unpacker.unpack(len(packed) - 1, target_fd, 0, Runs.from_pairs([(0, 8)]))


def test_sizes_are_checked(source: RamMapping) -> None:
    with pytest.raises(ValueError, match="no packer"):
        Packer(0)
    with pytest.raises(ValueError, match="no unpacker"):
        Unpacker(100, 100)
    with pytest.raises(ValueError, match="more than"):
        Unpacker(100, PAGE_BYTES).buffer(101)
    with pytest.raises(OSError, match="pack"):
        Packer(4).pack(source, Runs.from_pairs([(0, 5)]), 1)
