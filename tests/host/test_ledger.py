"""Which pages exist, kept by what was written and the kernel's count, against a real shmem file."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.kernel import paging
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import PageSet, Runs
from pageferry.kernel.residency import allocated_pages, data_among, data_pages
from pageferry.migration import ledger as ledger_module
from pageferry.migration.guest_ram import CarriedBlock
from pageferry.migration.ledger import DataLedger
from pageferry.model.blocks import PAGE_BYTES, RamBlock

PAGES = 512


class Ram:
    """A RAM file with the pages that a guest wrote, read and gave back."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ram")
        os.ftruncate(self.fd, PAGES * PAGE_BYTES)
        self.guest = mmap.mmap(self.fd, PAGES * PAGE_BYTES)
        self.mapping = RamMapping(self.fd, 0, PAGES * PAGE_BYTES)
        stat = os.fstat(self.fd)
        block = RamBlock("mem0", PAGES * PAGE_BYTES)
        self.block = CarriedBlock(block, self.mapping, (), stat.st_dev, stat.st_ino)

    def write(self, pages: set[int]) -> PageSet:
        for page in pages:
            self.guest[page * PAGE_BYTES] = 1
        return set_of(pages)

    def read(self, page: int) -> None:
        assert self.guest[page * PAGE_BYTES] == 0

    def punch(self, pages: set[int]) -> None:
        paging.punch(self.fd, 0, Runs.from_pages(pages))

    def close(self) -> None:
        self.mapping.close()
        self.guest.close()
        os.close(self.fd)


def set_of(pages: set[int]) -> PageSet:
    found = PageSet(PAGES)
    for page in pages:
        found.add(page, 1)
    return found


@pytest.fixture
def ram() -> Iterator[Ram]:
    made = Ram()
    yield made
    made.close()


pages_of = st.sets(st.integers(0, PAGES - 1), max_size=60)


@given(pages_of, pages_of, pages_of, pages_of)
@settings(deadline=None, max_examples=60)
def test_it_is_what_the_kernel_says(
    first: set[int], written: set[int], gone: set[int], again: set[int]
) -> None:
    """Whatever is written and given back, in whatever order."""
    ram = Ram()
    try:
        ram.write(first)
        ledger = DataLedger([ram.block])
        ledger.list_all()
        reported = ram.write(written)
        ram.punch(gone)
        reported.add_all(ram.write(again))
        ledger.update([reported], whole=True)
        assert ledger.data == [data_pages(ram.mapping)]
        left = reported.copy()
        left.discard_all(ledger.data[0])
        assert not left, "what is to be sent exists"
    finally:
        ram.close()


def test_nothing_is_listed_while_the_count_fits(ram: Ram, monkeypatch: pytest.MonkeyPatch) -> None:
    ram.write({1, 2, 3})
    ledger = DataLedger([ram.block])
    ledger.list_all()

    def never(_mapping: RamMapping, *_within: PageSet) -> PageSet:
        raise AssertionError("looked at the file")

    monkeypatch.setattr(ledger_module, "data_pages", never)
    monkeypatch.setattr(ledger_module, "data_among", never)
    assert ledger.update([ram.write({3, 4})], whole=None)
    assert ledger.data == [set_of({1, 2, 3, 4})]


def test_only_what_was_written_is_looked_at_where_that_explains_the_count(
    ram: Ram, monkeypatch: pytest.MonkeyPatch
) -> None:
    ram.write({1, 2, 3})
    ledger = DataLedger([ram.block])
    ledger.list_all()
    monkeypatch.setattr(ledger_module, "data_pages", None)
    written = ram.write({4, 5, 6})
    ram.punch({5})
    assert ledger.update([written], whole=None)
    assert ledger.data == [set_of({1, 2, 3, 4, 6})]
    assert written == set_of({4, 6})


def test_with_the_guest_stopped_a_slow_listing_is_left_out(ram: Ram) -> None:
    ram.write({1, 2, 3})
    ledger = DataLedger([ram.block])
    ledger.list_all()
    ram.punch({2})
    ledger.listing_ns = ledger_module.QUICK_LISTING_NS + 1
    assert not ledger.update([PageSet(PAGES)], whole=None)
    assert ledger.data == [set_of({1, 2, 3})], "the destination keeps what it has"
    assert not ledger.update([PageSet(PAGES)], whole=True)
    assert ledger.data == [set_of({1, 3})]
    assert ledger.update([PageSet(PAGES)], whole=None)


def test_a_hole_that_was_read_is_found_by_the_count(ram: Ram) -> None:
    ram.write({1})
    ledger = DataLedger([ram.block])
    ledger.list_all()
    ram.read(9)
    assert not ledger.update([PageSet(PAGES)], whole=True)
    assert ledger.data == [data_pages(ram.mapping)]
    assert 9 in ledger.data[0]


@given(pages_of, pages_of)
@settings(deadline=None, max_examples=40)
def test_data_among_some_pages_is_the_data_of_those(data: set[int], within: set[int]) -> None:
    ram = Ram()
    try:
        ram.write(data)
        assert data_among(ram.mapping, set_of(within)) == set_of(data & within)
        assert allocated_pages(ram.mapping) == len(data)
    finally:
        ram.close()
