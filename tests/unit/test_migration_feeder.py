"""The page-in window: never more than it allows, everything handed out once, nothing left over."""

from __future__ import annotations

import threading
import time
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.kernel import paging
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import PageSet, Runs
from pageferry.migration.feeder import (
    Batch,
    ColdFeeder,
    Feeder,
    batches_of,
    cold_batch_pages,
)
from pageferry.model.blocks import PAGE_BYTES

MAPPING = cast(RamMapping, None)


class Reads:
    """Stands in for the kernel: remembers which reads were started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pages: list[tuple[int, int]] = []
        monkeypatch.setattr(paging, "will_need", self._will_need)

    def _will_need(self, _mapping: object, runs: Runs) -> None:
        self.pages.extend(runs)

    @property
    def total(self) -> int:
        return sum(count for _start, count in self.pages)


def _batches(count: int, pages: int) -> list[Batch]:
    return [
        Batch(0, MAPPING, Runs.from_pairs([(index * 2 * pages, pages)])) for index in range(count)
    ]


def test_reads_ahead_up_to_the_window_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    feeder = ColdFeeder(_batches(10, 16), 64 * PAGE_BYTES)
    first = feeder.next()
    assert first is not None
    assert reads.total == 64
    assert feeder.next() is not None
    assert reads.total == 64, "what was handed out counts until it is done"
    feeder.done(first)
    assert feeder.next() is not None
    assert reads.total == 80


def test_the_window_can_be_changed_while_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    feeder = ColdFeeder(_batches(20, 16), 32 * PAGE_BYTES)
    first = feeder.next()
    assert first is not None
    assert reads.total == 32
    feeder.set_window(64 * PAGE_BYTES)
    second = feeder.next()
    assert second is not None
    third = feeder.next()
    assert third is not None
    assert reads.total == 64
    feeder.set_window(16 * PAGE_BYTES)
    for batch in (first, second, third):
        feeder.done(batch)
    assert feeder.next() is not None
    assert reads.total == 64  # what was read ahead is all there may be


def test_a_batch_larger_than_the_window_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    feeder = ColdFeeder(_batches(2, 64), 16 * PAGE_BYTES)
    first = feeder.next()
    assert first is not None
    assert reads.total == 64
    feeder.done(first)
    assert feeder.next() is not None


def test_many_threads_get_every_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Reads(monkeypatch)
    feeder = ColdFeeder(_batches(200, 8), 32 * PAGE_BYTES)
    got: list[int] = []
    in_hand = [0]
    most = [0]
    lock = threading.Lock()

    def work() -> None:
        while (batch := feeder.next()) is not None:
            with lock:
                got.append(batch.runs.first_page)
                in_hand[0] += batch.runs.pages
                most[0] = max(most[0], in_hand[0])
            time.sleep(0.0002)
            with lock:
                in_hand[0] -= batch.runs.pages
            feeder.done(batch)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert sorted(got) == [index * 16 for index in range(200)]
    assert most[0] <= 32


def test_stop_wakes_who_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    Reads(monkeypatch)
    feeder = ColdFeeder(_batches(3, 16), 16 * PAGE_BYTES)
    assert feeder.next() is not None
    results: list[Batch | None] = []
    waiting = threading.Thread(target=lambda: results.append(feeder.next()))
    waiting.start()
    time.sleep(0.05)
    assert waiting.is_alive(), "the window is full"
    feeder.stop()
    waiting.join(timeout=5)
    assert results == [None]


def test_a_stopped_feeder_hands_out_nothing() -> None:
    feeder = Feeder(_batches(3, 1))
    assert feeder.next() is not None
    feeder.stop()
    assert feeder.next() is None


@given(st.sets(st.integers(0, 4999), max_size=300), st.integers(1, 64))
def test_batches_are_the_pages_in_order(pages: set[int], batch_pages: int) -> None:
    page_set = PageSet(5000)
    for page in pages:
        page_set.add(page, 1)
    seen: list[int] = []
    for batch in batches_of(3, MAPPING, page_set, lambda: batch_pages):
        assert batch.block == 3
        assert 0 < batch.runs.pages <= batch_pages
        for start, count in batch.runs:
            seen.extend(range(start, start + count))
    assert seen == sorted(pages)


@given(st.integers(1, 2**31), st.integers(1, 64))
def test_read_ahead_fits_the_window(window_bytes: int, channels: int) -> None:
    pages = cold_batch_pages(window_bytes, channels)
    assert 8 <= pages <= 256
    if pages > 8:
        assert pages * channels * PAGE_BYTES * 4 <= window_bytes
