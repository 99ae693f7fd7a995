"""A process that stands in for QEMU: it maps a RAM file and writes to it when told to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pageferry.kernel import procfs
from pageferry.kernel.tracking import AddressRange
from pageferry.model.blocks import PAGE_BYTES

PROGRAM = r"""
import mmap, os, sys, threading

path, pages = sys.argv[1], int(sys.argv[2])
fd = os.open(path, os.O_RDWR)
ram = mmap.mmap(fd, pages * 4096)
wake, woken = threading.Event(), []

def wait():
    woken.append(wake.wait())  # blocked in futex until told to end

thread = threading.Thread(target=wait)
thread.start()
print("ready", flush=True)
for line in sys.stdin:
    command, *numbers = line.split()
    numbers = [int(number) for number in numbers]
    answer = "ok"
    if command == "write":
        for page in numbers:
            ram[page * 4096] = (ram[page * 4096] + 1) % 256
    elif command == "read":
        for page in numbers:
            ram[page * 4096]
    elif command == "kernel-write":  # the kernel copies into our memory
        reader, writer = os.pipe()
        for page in numbers:
            os.write(writer, b"kernel")
            os.readv(reader, [memoryview(ram)[page * 4096 : page * 4096 + 6]])
    elif command == "page-out":
        for page in numbers:
            ram.madvise(21, page * 4096, 4096)
    elif command == "remap":
        ram.close()
        ram = mmap.mmap(fd, pages * 4096)
    elif command == "end":
        wake.set()
        thread.join()
        answer = f"woken {woken}"
    print(answer, flush=True)
    if command == "end":
        break
"""


class TrackedProcess:
    """A child with the file mapped once, shared and writable, and a thread blocked in futex."""

    def __init__(self, path: Path, pages: int) -> None:
        self.pages = pages
        self._path = path
        self._child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path), str(pages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._child.pid
        assert self._answer() == "ready"

    @property
    def addresses(self) -> AddressRange:
        """Where the child maps the file."""
        status = os.stat(self._path)
        (entry,) = procfs.ranges_of_file(self.pid, status.st_dev, status.st_ino)
        return AddressRange(entry.start, entry.end)

    def tell(self, command: str, *pages: int) -> str:
        """Have the child do something; returns when it is done."""
        assert self._child.stdin is not None
        self._child.stdin.write(" ".join([command, *map(str, pages)]) + "\n")
        self._child.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """End it in the regular way: this fails unless its waiting thread is as it should be."""
        assert self.tell("end") == "woken [True]"
        assert self._child.wait(10) == 0

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _answer(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()


@contextlib.contextmanager
def tracked_process(path: Path, pages: int) -> Iterator[TrackedProcess]:
    """The child, killed at the end if it still runs."""
    with path.open("a+b") as file:
        file.truncate(pages * PAGE_BYTES)
    child = TrackedProcess(path, pages)
    try:
        yield child
    finally:
        child.kill()
