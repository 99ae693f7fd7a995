"""Looking at a migration from outside, ten times a second, without taking part in it.

All that is read comes from the host: sizes of the RAM files, their residency, swap counters, bytes
on the wire. Neither QEMU nor pageferry is asked anything, so neither pays for the answers.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from pageferry.kernel.scheduling import ThreadPriority
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.hosts import cached_bytes, swap_traffic
from pageferry.testing.lab.links import received_bytes
from pageferry.testing.lab.qemus import LabQemu

INTERVAL_S = 0.1

RESIDENCY_SHARE = 0.03
"""cachestat walks every page of a file: 3 to 6 ms for a GiB. It may take this share of one
processor; with a larger guest residency is looked at less often than the rest."""


PIECE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen at one time of ``time.monotonic``. Residency None: not looked at this time."""

    at_s: float
    source_allocated_bytes: int
    destination_allocated_bytes: int
    source_resident_bytes: int | None
    destination_resident_bytes: int | None
    swap_in_bytes: int
    swap_out_bytes: int
    wire_bytes: int


@dataclass(slots=True)
class Sampler:
    """Collects sights in a thread of its own, from :func:`sampling`'s begin to its end."""

    source: LabQemu
    destination: LabQemu
    interface: str
    sights: list[Sight] = field(default_factory=list)
    cpu_s: float = 0.0
    """Processor time that the sampler has taken itself."""
    lasted_s: float = 0.0
    """In how much time it took that."""

    _residency_cpu_s: float = 0.0
    _began_s: float = 0.0

    def run(self, ended: threading.Event) -> None:
        """Look until *ended* is set, or the destination is gone."""
        self._began_s = time.monotonic()
        begin_cpu_s = time.thread_time()
        # At usual priority its looks at residency, 30 ms in one system call of a busy machine, took
        # the processor from the guest so often that the guest's 99th percentile showed only that.
        priority = ThreadPriority()
        while not ended.wait(INTERVAL_S):
            priority.set_polite(True)
            with contextlib.suppress(OSError, LabError):
                self.sights.append(self._look())
            self.cpu_s = time.thread_time() - begin_cpu_s
            self.lasted_s = time.monotonic() - self._began_s

    def _look(self) -> Sight:
        now_s = time.monotonic()
        source, destination = self.source.ram_descriptor(), self.destination.ram_descriptor()
        swap = swap_traffic()
        wire_bytes = received_bytes(self.destination.pid, self.interface)
        sizes = [os.fstat(file).st_blocks * 512 for file in (source, destination)]
        resident: list[int | None] = [None, None]
        if self._residency_cpu_s <= RESIDENCY_SHARE * (now_s - self._began_s):
            begin_cpu_s = time.thread_time()
            resident = [
                min(_resident_bytes(file), size)
                for file, size in zip((source, destination), sizes, strict=True)
            ]
            self._residency_cpu_s += time.thread_time() - begin_cpu_s
        return Sight(
            at_s=now_s,
            source_allocated_bytes=sizes[0],
            destination_allocated_bytes=sizes[1],
            source_resident_bytes=resident[0],
            destination_resident_bytes=resident[1],
            swap_in_bytes=swap.in_bytes,
            swap_out_bytes=swap.out_bytes,
            wire_bytes=wire_bytes,
        )


def _resident_bytes(file: int) -> int:
    """In pieces, between which others get the processor."""
    length_bytes = os.fstat(file).st_size
    return sum(
        cached_bytes(file, start, min(PIECE_BYTES, length_bytes - start))
        for start in range(0, length_bytes, PIECE_BYTES)
    )


@contextlib.contextmanager
def sampling(source: LabQemu, destination: LabQemu, interface: str) -> Iterator[Sampler]:
    """A sampler that looks for as long as the context lasts."""
    # Opened here, while both QEMUs run: one may be gone when the thread first looks.
    source.ram_descriptor()
    destination.ram_descriptor()
    sampler = Sampler(source, destination, interface)
    ended = threading.Event()
    thread = threading.Thread(target=sampler.run, args=(ended,), name="sampler")
    thread.start()
    try:
        yield sampler
    finally:
        ended.set()
        thread.join()
