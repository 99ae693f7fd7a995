"""The pagemap reader against entries made up as the patched kernel writes them."""

from __future__ import annotations

import importlib
import os
import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from pageferry.kernel import residency
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import PageSet, Runs
from pageferry.kernel.residency import PagemapReader
from pageferry.model.blocks import PAGE_BYTES

ffi: Any = importlib.import_module("pageferry.kernel._native").ffi

PAGES = 6000  # more than two batches of entries
PRESENT, SWAPPED, FILE = 1 << 63, 1 << 62, 1 << 61
MIGRATION_TYPE = 30


def located(swap_type: int, offset: int) -> int:
    return SWAPPED | FILE | swap_type | offset << 5


class FakePagemap:
    """A sparse file with entries for one mapping, in place of /proc/self/pagemap."""

    def __init__(self, mapping: RamMapping) -> None:
        self.fd = os.memfd_create("pageferry-pagemap", os.MFD_CLOEXEC)
        with mapping.use() as base:
            self.first = int(ffi.cast("uintptr_t", base)) // PAGE_BYTES
        os.ftruncate(self.fd, (self.first + mapping.pages) * 8)

    def put(self, page: int, entry: int) -> None:
        os.pwrite(self.fd, struct.pack("<Q", entry), (self.first + page) * 8)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_exception: object) -> None:
        pass


@pytest.fixture
def mapping() -> Iterator[RamMapping]:
    fd = os.memfd_create("pageferry-test", os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGES * PAGE_BYTES)
    with RamMapping(fd, 0, PAGES * PAGE_BYTES) as made:
        os.close(fd)
        yield made


@pytest.fixture
def pagemap(mapping: RamMapping, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePagemap]:
    fake = FakePagemap(mapping)
    monkeypatch.setattr(residency, "_own_pagemap", lambda: fake)
    yield fake
    os.close(fake.fd)


def everything() -> PageSet:
    pages = PageSet(PAGES)
    pages.add(0, PAGES)
    return pages


def test_only_shared_pages_in_a_swap_device_count(
    mapping: RamMapping, pagemap: FakePagemap
) -> None:
    for page in (0, 1, 2047, 2048, 5999):
        pagemap.put(page, located(1, 7 + page))
    pagemap.put(10, PRESENT | FILE)
    pagemap.put(11, SWAPPED | 7 << 5)  # anonymous
    pagemap.put(12, located(MIGRATION_TYPE, 7))
    pagemap.put(13, located(31, 1))  # a write-protection marker
    found = PagemapReader().swapped(mapping, everything())
    assert list(found.runs()) == [(0, 2), (2047, 2), (5999, 1)]


def test_pages_outside_of_the_question_are_left_out(
    mapping: RamMapping, pagemap: FakePagemap
) -> None:
    for page in range(100):
        pagemap.put(page, located(0, 1 + page))
    asked = Runs.from_pairs([(3, 2), (50, 1), (99, 2)])
    assert list(PagemapReader().evicted_in(mapping, asked)) == [(3, 2), (50, 1), (99, 1)]


def test_far_and_near_runs_are_all_looked_at(mapping: RamMapping, pagemap: FakePagemap) -> None:
    """Near runs share one read, far ones do not; whatever the gap, no page is lost or added."""
    stream = random.Random(5)
    swapped = {page for page in range(PAGES) if stream.random() < 0.5}
    for page in swapped:
        pagemap.put(page, located(0, 1 + page))
    for gap in (1, 63, 64, 65, 100, 2047, 2048, 3000):
        asked = {
            page
            for start in range(stream.randrange(50), PAGES, gap + 3)
            for page in range(start, min(start + 3, PAGES))
        }
        found = PagemapReader().evicted_in(mapping, Runs.from_pages(asked))
        members = {page for start, count in found for page in range(start, start + count)}
        assert members == asked & swapped


def test_only_what_is_asked_for_is_read(mapping: RamMapping, pagemap: FakePagemap) -> None:
    """A batch in slot order asks for single pages all over: entries between them cost too much."""
    asked = [0, 1000, 2500, 5999]
    with mapping.use():
        for page in range(PAGES):
            if page not in asked:
                pagemap.put(page, located(0, 9))
    os.ftruncate(pagemap.fd, (pagemap.first + 2501) * 8)
    reader = PagemapReader()
    assert not reader.evicted_in(mapping, Runs.from_pages(asked[:3])).pages
    with pytest.raises(OSError, match="read pagemap"):
        reader.evicted_in(mapping, Runs.from_pages(asked))


def test_cold_order_goes_by_type_and_offset(mapping: RamMapping, pagemap: FakePagemap) -> None:
    slots = {5: (1, 1), 6: (0, 900), 7: (0, 100), 8: (0, 101), 4000: (0, 102), 9: (1, 2)}
    for page, slot in slots.items():
        pagemap.put(page, located(*slot))
    swapped = PageSet(PAGES)
    for page in slots:
        swapped.add(page, 1)
    swapped.add(5000, 1)  # has come in meanwhile
    batches = PagemapReader().cold_order(mapping, swapped, batch_pages=3)
    assert batches is not None
    assert [list(batch) for batch in batches] == [
        [(7, 2), (4000, 1)],
        [(5, 2), (9, 1)],
        [(5000, 1)],
    ]


def test_cold_order_is_unknown_without_locations(mapping: RamMapping, pagemap: FakePagemap) -> None:
    pagemap.put(3, SWAPPED | FILE)
    swapped = PageSet(PAGES)
    swapped.add(3, 1)
    assert PagemapReader().swapped(mapping, everything()).count() == 1
    assert PagemapReader().cold_order(mapping, swapped) is None
