"""What looking at, arming and scanning guest RAM of some size costs, measured on a stand-in."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import TypeVar

from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import PageSet
from pageferry.kernel.residency import (
    CachestatReader,
    MincoreReader,
    PagemapReader,
    ResidencyReader,
    data_pages,
    probe_readers,
)
from pageferry.kernel.tracking import WriteTracker
from pageferry.model.blocks import PAGE_BYTES
from pageferry.testing.bench.scale.standin import StandIn, stand_in, status_bytes
from pageferry.testing.lab.hosts import ram_file

MIB = 1024**2
GIB = 1024**3

SPARSE_STEP_BYTES = MIB
"""One page of each MiB exists and is written: 0.4 %, each a run of its own."""

FULL_STEP_BYTES = PAGE_BYTES
"""Every page exists and is written."""

TIMES = 3
"""Short measurements are repeated, and the best counts: what disturbs only ever adds."""

Result = TypeVar("Result")


def costs_of(size_gib: int, step_bytes: int = SPARSE_STEP_BYTES) -> dict[str, float]:
    """Milliseconds and MiB for a guest of this size that uses one page every *step_bytes*, by name.

    Raises what the kernel refuses.
    """
    # First of all: once sets have been freed, new ones take their place and nothing seems to grow.
    set_bytes = set_bytes_of(size_gib * GIB // PAGE_BYTES)
    with ram_file(f"scale-{size_gib}") as path, stand_in(path, size_gib * GIB) as child:
        child.write_every(step_bytes)
        descriptor = os.open(path, os.O_RDWR)
        try:
            mapping = RamMapping(descriptor, 0, size_gib * GIB)
        finally:
            os.close(descriptor)
        with mapping:
            costs = {"size_gib": float(size_gib)}
            costs |= _residency_costs(mapping)
            costs |= _tracking_costs(child, mapping.pages, step_bytes)
            costs |= {"combine_ms": _combining_ms(data_pages(mapping)), "set_mib": set_bytes / MIB}
            return costs


def _residency_costs(mapping: RamMapping) -> dict[str, float]:
    data, costs = data_pages(mapping), {}
    costs["holes_ms"] = _best_ms(lambda: data_pages(mapping))
    readers: list[ResidencyReader] = [CachestatReader(), MincoreReader(), PagemapReader()]
    works = {result.name for result in probe_readers() if result.supported}
    for reader in readers:
        if reader.name in works:
            look = functools.partial(reader.swapped, mapping, data)
            costs[f"{reader.name}_ms"] = _best_ms(look)
    return costs


def _tracking_costs(child: StandIn, pages: int, step_bytes: int) -> dict[str, float]:
    addresses = child.addresses
    arm_ms, tracker = _timed(lambda: WriteTracker.arm(child.pid, [addresses]))

    def scan() -> int:
        return tracker.scan(addresses, PageSet(pages), 0)

    try:
        clean_ms = _best_ms(scan)
        first_ns, again_ns = child.write_every(step_bytes), child.write_every(step_bytes)
        written_ms, found = _timed(scan)
        if found != pages * PAGE_BYTES // step_bytes:
            raise AssertionError(f"{found} pages were reported as written")
        tables = child.page_table_bytes()
    finally:
        disarm_ms, _nothing = _timed(tracker.close)
    return {
        "arm_ms": arm_ms,
        "thread_stopped_ms": tracker.held_ns / 1e6,
        "first_write_us": max(
            0.0, (first_ns - again_ns) / 1e3 / (pages * PAGE_BYTES // step_bytes)
        ),
        "scan_clean_ms": clean_ms,
        "scan_written_ms": written_ms,
        "disarm_ms": disarm_ms,
        "page_tables_mib": tables / MIB,
    }


def set_bytes_of(pages: int) -> int:
    """What one full set of the pages of a block takes, when none of its size was there before."""
    before = status_bytes(os.getpid(), "RssAnon")
    full = PageSet(pages)
    full.add(0, pages)
    return status_bytes(os.getpid(), "RssAnon") - before


def _combining_ms(data: PageSet) -> float:
    """Combining sets as the last round does it."""
    full = PageSet(data.pages)
    full.add(0, data.pages)

    def combine() -> None:
        missing = data.copy()
        missing.discard_all(full)
        missing.keep_all(data)
        missing.count()

    return _best_ms(combine)


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    began_ns = time.monotonic_ns()
    result = work()
    return (time.monotonic_ns() - began_ns) / 1e6, result


def _best_ms(work: Callable[[], object]) -> float:
    return min(_timed(work)[0] for _time in range(TIMES))
