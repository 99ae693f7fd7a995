"""Write tracking of a real process: what is reported, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pageferry.kernel import procfs
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import PageSet
from pageferry.kernel.residency import CachestatReader, data_pages
from pageferry.kernel.tracking import (
    AddressRange,
    WriteTracker,
    mapped_pages,
    uffd_armed_ranges,
)
from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.errors import RefusedError, TrackingLostError
from pageferry.policy.scanning import scan_pieces
from pageferry.testing.lab.swap import SwapArea
from tests.host.tracked import TrackedProcess
from tests.support import need

pytestmark = pytest.mark.root

Track = Callable[[int], TrackedProcess]
PAGES = 8192

HOLD_TRACKING = r"""
import sys, time
from pageferry.kernel.tracking import AddressRange, WriteTracker
tracker = WriteTracker.arm(int(sys.argv[1]), [AddressRange(int(sys.argv[2]), int(sys.argv[3]))])
print("armed", flush=True)
time.sleep(600)
"""

ARM_ALL_THE_TIME = r"""
import sys
from pageferry.kernel.tracking import AddressRange, WriteTracker
print("going", flush=True)
while True:
    WriteTracker.arm(int(sys.argv[1]), [AddressRange(int(sys.argv[2]), int(sys.argv[3]))]).close()
"""

TRY_TO_ARM = r"""
import sys
from pageferry.kernel.tracking import AddressRange, WriteTracker
try:
    WriteTracker.arm(int(sys.argv[1]), [AddressRange(int(sys.argv[2]), int(sys.argv[3]))])
except Exception as error:
    print(type(error).__name__, error, error.advice)
"""

HOLD_PTRACE = r"""
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
for tid in sys.argv[1:]:
    assert libc.ptrace(ctypes.c_long(0x4206), ctypes.c_long(int(tid)), None, None) == 0
print("seized", flush=True)
time.sleep(600)
"""


def scan(tracker: WriteTracker, child: TrackedProcess) -> set[int]:
    found = PageSet(child.pages)
    count = tracker.scan(child.addresses, found, 0)
    assert count == found.count()
    return {page for start, n in found.runs() for page in range(start, start + n)}


@contextlib.contextmanager
def helper(program: str, *arguments: int) -> Iterator[subprocess.Popen[str]]:
    """A Python process that says one word when it is ready; killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline()
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_user_writes_are_reported_once(track: Track) -> None:
    child = track(PAGES)
    child.tell("write", *range(0, 3000))
    with contextlib.closing(WriteTracker.arm(child.pid, [child.addresses])) as tracker:
        assert scan(tracker, child) == set()
        pages = set(random.Random(1).sample(range(PAGES), 1500))  # holes among them
        child.tell("write", *pages)
        assert scan(tracker, child) == pages
        assert scan(tracker, child) == set()
        child.tell("write", 7)
        assert scan(tracker, child) == {7}
    child.end()


def test_kernel_writes_are_reported(track: Track) -> None:
    child = track(PAGES)
    child.tell("write", 5, 6)
    with contextlib.closing(WriteTracker.arm(child.pid, [child.addresses])) as tracker:
        child.tell("kernel-write", 5, 4000)
        assert scan(tracker, child) == {5, 4000}
    child.end()


def test_reading_is_not_writing(track: Track) -> None:
    child = track(PAGES)
    child.tell("write", *range(100))
    with contextlib.closing(WriteTracker.arm(child.pid, [child.addresses])) as tracker:
        child.tell("read", *range(200))
        assert scan(tracker, child) == set()
        child.tell("write", 150)  # read as a hole, then written
        assert scan(tracker, child) == {150}
    child.end()


def test_written_then_swapped_is_still_reported(
    track: Track, swap: SwapArea, ram_path: Path
) -> None:
    child = track(PAGES)
    child.tell("write", *range(1000))
    fd = os.open(ram_path, os.O_RDWR)
    with (
        RamMapping(fd, 0, PAGES * PAGE_BYTES) as mapping,
        contextlib.closing(WriteTracker.arm(child.pid, [child.addresses])) as tracker,
    ):
        child.tell("write", *range(0, 1000, 7))
        child.tell("page-out", *range(1000))
        swapped = CachestatReader().swapped(mapping, data_pages(mapping))
        assert swapped.count() >= 900
        assert scan(tracker, child) == {*range(0, 1000, 7)}
        # Residency can be told while the range is protected, holes included.
        child.tell("write", 3000)
        assert data_pages(mapping).count() == 1001
        assert scan(tracker, child) == {3000}
        child.tell("write", 500)  # swapped in by this write
        assert scan(tracker, child) == {500}
    os.close(fd)
    child.end()


def test_pages_left_unprotected_count_as_written_whatever_becomes_of_them(
    track: Track, swap: SwapArea, ram_path: Path
) -> None:
    child = track(PAGES)
    child.tell("write", *range(1000))
    left = PageSet(PAGES)
    for first in range(100, 1000, 100):
        left.add(first, 50)
    left.add(4000, 10)  # holes
    expected = {page for start, n in left.runs() for page in range(start, start + n)}
    with contextlib.closing(WriteTracker.begin(child.pid, [child.addresses])) as tracker:
        tracker.protect(child.addresses, left, 0)
        child.tell("write", 7, *range(100, 150), 220, 4001)
        # Unmapped by reclaim, written or not, they leave no entry and no mark behind.
        child.tell("page-out", *range(100, 400))
        assert scan(tracker, child) == expected | {7}
        assert scan(tracker, child) == set()
        child.tell("write", 120, 330, 950, 4005)  # swapped, swapped, mapped, a hole
        child.tell("page-out", 120, 330, 950)
        assert scan(tracker, child) == {120, 330, 950, 4005}
        child.tell("write", *range(1000))
        assert scan(tracker, child) == {*range(1000)}
    child.end()


def test_a_part_of_a_set_is_left_unprotected_where_it_belongs(track: Track) -> None:
    child = track(PAGES)
    upper = AddressRange(child.addresses.start + 1000 * PAGE_BYTES, child.addresses.end)
    left = PageSet(PAGES)
    for start, count in ((0, 5), (495, 10), (PAGES - 500, 500)):
        left.add(start, count)
    with contextlib.closing(WriteTracker.begin(child.pid, [upper])) as tracker:
        tracker.protect(upper, left, 500)  # what lies before and behind the range is not looked at
        found = PageSet(PAGES)
        assert tracker.scan(upper, found, 500) == 5 + 500 - (1000 - 500)
        assert list(found.runs()) == [(500, 5)]
        with pytest.raises(ValueError, match="beyond"):
            tracker.protect(upper, left, 1001)
    child.end()


def test_only_the_asked_range_is_scanned_and_shifted(track: Track) -> None:
    child = track(PAGES)
    whole = child.addresses
    upper = AddressRange(whole.start + 1000 * PAGE_BYTES, whole.end)
    with contextlib.closing(WriteTracker.arm(child.pid, [upper])) as tracker:
        child.tell("write", 5, 1000, 1500)
        found = PageSet(PAGES)
        assert tracker.scan(upper, found, 10) == 2
        assert list(found.runs()) == [(10, 1), (510, 1)]
    child.end()


def test_pages_that_do_not_fit_the_set_stay_marked(track: Track) -> None:
    child = track(PAGES)
    with contextlib.closing(WriteTracker.arm(child.pid, [child.addresses])) as tracker:
        child.tell("write", 5)
        with pytest.raises(ValueError, match="beyond"):
            tracker.scan(child.addresses, PageSet(PAGES), 1)
        assert scan(tracker, child) == {5}
    child.end()


def test_closing_leaves_no_trace(track: Track) -> None:
    child = track(PAGES)
    descriptors = sorted(procfs.fd_links(child.pid))
    tracker = WriteTracker.arm(child.pid, [child.addresses])
    assert uffd_armed_ranges(child.pid) == [child.addresses]
    assert sorted(procfs.fd_links(child.pid)) == descriptors
    assert 0 < tracker.held_ns < 1_000_000_000
    tracker.close()
    tracker.close()
    assert uffd_armed_ranges(child.pid) == []
    with pytest.raises(TrackingLostError, match="has ended"):
        scan(tracker, child)
    child.tell("write", *range(100))
    child.end()


def test_killed_tracker_leaves_no_trace_and_can_be_followed(track: Track) -> None:
    child = track(PAGES)
    addresses = child.addresses
    with helper(HOLD_TRACKING, child.pid, addresses.start, addresses.end) as tracker:
        child.tell("write", *range(50))
        assert uffd_armed_ranges(child.pid) == [addresses]
        tracker.send_signal(signal.SIGKILL)
        tracker.wait()
    assert uffd_armed_ranges(child.pid) == []
    child.tell("write", *range(50))
    with contextlib.closing(WriteTracker.arm(child.pid, [addresses])) as again:
        child.tell("write", 9)
        assert scan(again, child) == {9}
    child.end()


def test_second_tracker_is_refused_and_the_first_goes_on(track: Track) -> None:
    child = track(PAGES)
    with contextlib.closing(WriteTracker.arm(child.pid, [child.addresses])) as tracker:
        with pytest.raises(RefusedError, match="userfaultfd on its RAM already") as caught:
            WriteTracker.arm(child.pid, [child.addresses])
        assert "migration" in caught.value.advice
        child.tell("write", 3)
        assert scan(tracker, child) == {3}
    child.end()


def test_process_under_a_debugger_is_refused_by_name(track: Track) -> None:
    child = track(PAGES)
    with (
        helper(HOLD_PTRACE, *procfs.threads_of(child.pid)) as debugger,
        pytest.raises(RefusedError, match=rf"traced by python.*{debugger.pid}"),
    ):
        WriteTracker.arm(child.pid, [child.addresses])
    child.end()


def test_missing_privilege_is_refused_with_advice(track: Track) -> None:
    child = track(PAGES)
    need(shutil.which("setpriv") is not None, "setpriv is missing: install util-linux")
    drop = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    numbers = [child.pid, child.addresses.start, child.addresses.end]
    result = subprocess.run(
        [*drop, sys.executable, "-c", TRY_TO_ARM, *map(str, numbers)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("RefusedError")
    assert "CAP_SYS_PTRACE" in result.stdout
    child.end()


def test_threads_to_avoid_are_not_stopped(track: Track) -> None:
    child = track(PAGES)
    with pytest.raises(RefusedError, match="no thread that could be stopped"):
        WriteTracker.arm(child.pid, [child.addresses], avoid_threads=procfs.threads_of(child.pid))
    main_only = {tid for tid in procfs.threads_of(child.pid) if tid != child.pid}
    WriteTracker.arm(child.pid, [child.addresses], avoid_threads=main_only).close()
    child.end()


def test_stopped_process_is_tracked_and_stays_stopped(track: Track) -> None:
    child = track(PAGES)
    os.kill(child.pid, signal.SIGSTOP)
    with contextlib.closing(WriteTracker.arm(child.pid, [child.addresses])) as tracker:
        assert "T (stopped)" in Path(f"/proc/{child.pid}/status").read_text()
        os.kill(child.pid, signal.SIGCONT)
        child.tell("write", 8)
        assert scan(tracker, child) == {8}
    child.end()


def test_arming_many_times_harms_no_thread(track: Track) -> None:
    child = track(64)
    for page in range(64):
        with contextlib.closing(WriteTracker.arm(child.pid, [child.addresses])) as tracker:
            child.tell("write", page)
            assert scan(tracker, child) == {page}
    child.end()  # also says that its waiting thread was woken once, by us


def test_arming_while_the_process_writes(track: Track) -> None:
    child = track(PAGES)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            child.tell("write", *range(PAGES))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            WriteTracker.arm(child.pid, [child.addresses]).close()
    finally:
        stop.set()
        writer.join()
    child.end()


def test_tracker_killed_at_any_moment_does_not_harm_the_process(track: Track) -> None:
    child = track(PAGES)
    addresses = child.addresses
    stream = random.Random(5)
    for _ in range(25):
        with helper(ARM_ALL_THE_TIME, child.pid, addresses.start, addresses.end) as tracker:
            time.sleep(stream.random() * 0.004)  # anywhere in its loop
            tracker.kill()
        child.tell("write", *range(20))
    deadline = time.monotonic() + 5
    # The helper process of the last one may still be about to end.
    while uffd_armed_ranges(child.pid) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert uffd_armed_ranges(child.pid) == []
    child.end()


def test_end_of_the_process_is_tracking_lost(track: Track) -> None:
    child = track(PAGES)
    with contextlib.closing(WriteTracker.arm(child.pid, [child.addresses])) as tracker:
        addresses = child.addresses
        child.kill()
        with pytest.raises(TrackingLostError, match="QEMU has ended"):
            tracker.scan(addresses, PageSet(PAGES), 0)
    with pytest.raises(RefusedError, match="has ended"):
        WriteTracker.arm(child.pid, [addresses])


def test_memory_mapped_anew_is_tracking_lost(track: Track) -> None:
    child = track(PAGES)
    with contextlib.closing(WriteTracker.arm(child.pid, [child.addresses])) as tracker:
        addresses = child.addresses
        child.tell("remap")
        with pytest.raises(TrackingLostError, match="mapped anew"):
            tracker.scan(addresses, PageSet(PAGES), 0)
    child.end()


def test_mapped_pages_are_those_that_the_process_touched(track: Track) -> None:
    child = track(PAGES)
    child.tell("write", 0, 1, 2, 4000)
    found = PageSet(PAGES)
    count = mapped_pages(child.pid, child.addresses, found, 0)
    assert count == found.count()
    assert {0, 1, 2, 4000} <= {page for page in range(PAGES) if page in found}
    assert count < 4 * 16  # fault-around maps neighbours that exist
    child.end()


def test_threads_that_divide_a_scan_find_what_one_finds(track: Track) -> None:
    pages = 3 << 18  # 3 GiB, sparse
    child = track(pages)
    borders = [border + by for border in (1 << 18, 2 << 18) for by in (-65, -64, -1, 0, 1, 63, 64)]
    with contextlib.closing(WriteTracker.arm(child.pid, [child.addresses])) as tracker:
        for _scan in range(20):
            written = {*borders, *random.Random(_scan).sample(range(pages), 500)}
            child.tell("write", *written)
            found = PageSet(pages)
            with ThreadPoolExecutor(4) as threads:
                counts = [
                    threads.submit(tracker.scan, AddressRange(start, end), found, first)
                    for start, end, first in scan_pieces(
                        child.addresses.start, child.addresses.end, 0
                    )
                ]
            assert sum(count.result() for count in counts) == len(written) == found.count()
            assert {
                page for first, n in found.runs() for page in range(first, first + n)
            } == written
    child.end()


def test_cost_of_a_scan_grows_no_faster_than_the_memory(track: Track) -> None:
    child = track(1 << 18)  # 1 GiB, sparse
    whole = child.addresses
    quarter = AddressRange(whole.start, whole.start + (whole.end - whole.start) // 4)
    child.tell("write", *range(0, 1 << 18, 64))
    found = PageSet(child.pages)

    def best_s(tracker: WriteTracker, addresses: AddressRange) -> float:
        times = []
        for _ in range(9):
            started = time.perf_counter()
            tracker.scan(addresses, found, 0)
            times.append(time.perf_counter() - started)
        return min(times)

    with contextlib.closing(WriteTracker.arm(child.pid, [whole])) as tracker:
        small, large = best_s(tracker, quarter), best_s(tracker, whole)
    assert large < 4 * small * 2.5 + 0.001
    child.end()
