"""Batches of pages for the sending threads, and the window that bounds what is paged in for them.

A page that is brought in from swap is charged to the guest's own memory cgroup, and pushes out the
working set that this project exists to protect when there is too much of it: with 64 MiB in at a
time a guest in a tight cgroup saw 3865 major faults, with 1 to 8 MiB about 100. So at most *window*
bytes of cold pages are in at any time, counted from the moment their read is started until they
have been paged out again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pageferry.kernel import paging
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import PageSet, Runs
from pageferry.migration.limiter import Limiter
from pageferry.model.blocks import PAGE_BYTES
from pageferry.policy.bandwidth import NS_PER_S

BATCH_PAGES = 256
"""Pages in one batch of resident pages, 1 MiB: amortises the frame's head and one Python step
(about 0.1 ms) over 0.8 ms of sending, and is small enough to spread over the channels."""

MIN_COLD_BATCH_PAGES = 8
MAX_COLD_BATCH_PAGES = 256
"""They wait for the swap device, not for Python, and small ones keep all threads at work."""

READ_AHEAD_BATCHES = 4
"""Cold batches that fit the window per channel: one being sent, one being paged out, and two whose
reads keep the swap device busy meanwhile."""


LONGEST_WAIT_S = 0.1
"""After so long at most, the swap bandwidth is looked at again."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages of one block that go out together."""

    block: int
    mapping: RamMapping
    runs: Runs
    read_ahead: bool = False
    """Whether the reads of its swapped pages were started: some may be in the swap cache by now."""


def batches_of(
    block: int, mapping: RamMapping, pages: PageSet, batch_pages: Callable[[], int]
) -> Iterator[Batch]:
    """Cut *pages* into batches, in the order of their offsets; each of the size that is asked."""
    next_page = 0
    while True:
        size = batch_pages()
        runs = pages.take(next_page, size, size)
        if not runs.pages:
            return
        yield Batch(block, mapping, runs)
        next_page = runs.end_page


def cold_batch_pages(window_bytes: int, channels: int) -> int:
    """Pages in a batch of the cold pass, so that read-ahead fits the window."""
    share = window_bytes // (READ_AHEAD_BATCHES * max(1, channels)) // PAGE_BYTES
    return max(MIN_COLD_BATCH_PAGES, min(MAX_COLD_BATCH_PAGES, share))


class Feeder:
    """Hands out batches to sending threads. `next` and `done` are called by those threads."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)
        self._lock = threading.Lock()
        self._stopped = False

    def next(self) -> Batch | None:
        """The next batch, or None at the end or once stopped."""
        with self._lock:
            return None if self._stopped else next(self._batches, None)

    def done(self, batch: Batch) -> None:
        """The batch has been sent."""

    def stop(self) -> None:
        """Hand out nothing more."""
        self._stopped = True


class ColdFeeder(Feeder):
    """Hands out batches of swapped pages whose reads have been started.

    What is in is within the window, and the reads keep to the swap bandwidth.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        window_bytes: int,
        swap_bandwidth: Limiter | None = None,
    ) -> None:
        super().__init__(batches)
        self._swap_bandwidth = swap_bandwidth or Limiter()
        self._held = False
        self._room = threading.Condition(self._lock)
        self._window_pages = max(1, window_bytes // PAGE_BYTES)
        self._pages_in = 0
        self._started: deque[Batch] = deque()
        self._waiting: Batch | None = None
        self._exhausted = False
        self._wait_s: float | None = None
        """How long nothing more can be started but for want of room; None: until there is room."""

    def next(self) -> Batch | None:
        with self._room:
            while not self._stopped:
                self._read_ahead()
                if self._started:
                    return self._started.popleft()
                if self._exhausted:
                    return None
                # Everything that fits the window is in the hands of other threads, or the swap
                # bandwidth is used up until then.
                self._room.wait(self._wait_s)
            return None

    def done(self, batch: Batch) -> None:
        with self._room:
            self._pages_in -= batch.runs.pages
            self._room.notify_all()

    def set_window(self, window_bytes: int) -> None:
        """From now on at most so much, and at least one batch. What is in already stays."""
        with self._room:
            self._window_pages = max(1, window_bytes // PAGE_BYTES)
            self._room.notify_all()

    @property
    def pages_in(self) -> int:
        """Pages whose read was started and that have not been paged out again."""
        return self._pages_in

    def hold(self, held: bool) -> None:
        """Whether to start no more reads for now. From any thread."""
        with self._room:
            self._held = held
            self._room.notify_all()

    def stop(self) -> None:
        with self._room:
            self._stopped = True
            self._room.notify_all()

    def _read_ahead(self) -> None:
        """Start reads until the window is full. MADV_WILLNEED reads just the pages named."""
        self._wait_s = None
        while True:
            batch = self._waiting or next(self._batches, None)
            self._waiting = None
            if batch is None:
                self._exhausted = True
                return
            full = self._pages_in + batch.runs.pages > self._window_pages
            if full and self._pages_in:
                self._waiting = batch
                return
            if self._held:
                self._waiting = batch
                return
            wait_ns = self._swap_bandwidth.wait_ns()
            if wait_ns:
                self._waiting = batch
                # Cut short: the limit may be raised meanwhile.
                self._wait_s = min(wait_ns / NS_PER_S, LONGEST_WAIT_S)
                return
            self._swap_bandwidth.take(batch.runs.pages * PAGE_BYTES)
            paging.will_need(batch.mapping, batch.runs)
            self._pages_in += batch.runs.pages
            self._started.append(batch)
