"""A neighbour of a guest: a process that lives in a memory cgroup too small for it.

It touches pages at random and waits for each one that lies in swap, as the programs of an
overcommitted host do, and says how many touches it gets through.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO

from pageferry.testing.lab.cgroups import memory_cgroup

MIB = 1024 * 1024

_PROGRAM = """
import mmap, random, sys, time
size, seed = int(sys.argv[1]), int(sys.argv[2])
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_RANDOM)
pages = size // mmap.PAGESIZE
for page in range(pages):
    memory[page * mmap.PAGESIZE] = page & 255 or 1
pick = random.Random(seed).randrange
touches, until = 0, time.monotonic() + 0.1
while True:
    for _ in range(20):
        memory[pick(pages) * mmap.PAGESIZE]
    touches += 20
    if time.monotonic() >= until:
        print(touches, flush=True)
        until = time.monotonic() + 0.1
"""


class Neighbour:
    """The process, and what it has said so far."""

    def __init__(self, stdout: IO[str]) -> None:
        self._seen: list[tuple[float, int]] = []
        self._reader = threading.Thread(target=self._read, args=(stdout,), daemon=True)
        self._reader.start()

    def wait_running(self, deadline_s: float = 60.0) -> None:
        """Until it has filled its memory and touches. Raises TimeoutError."""
        end_s = time.monotonic() + deadline_s
        while len(self._seen) < 2:
            if time.monotonic() > end_s:
                raise TimeoutError("the neighbour does not touch anything")
            time.sleep(0.05)

    def touches_per_s(self, begin_s: float, end_s: float) -> float:
        """Between two moments of the monotonic clock."""
        within = [seen for seen in self._seen if begin_s <= seen[0] <= end_s]
        if len(within) < 2:
            return 0.0
        (first_s, first), (last_s, last) = within[0], within[-1]
        return (last - first) / (last_s - first_s)

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            self._seen.append((time.monotonic(), int(line)))


@contextlib.contextmanager
def neighbour(size_mib: int = 160, limit_mib: int = 64) -> Iterator[Neighbour]:
    """One that wants *size_mib* and gets *limit_mib*. Swap must be on."""
    with memory_cgroup("neighbour", limit_mib * MIB) as cgroup:
        program = [sys.executable, "-c", _PROGRAM, str(size_mib * MIB), "1"]
        with subprocess.Popen(
            cgroup.command(program), stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                yield Neighbour(process.stdout)
            finally:
                process.kill()
