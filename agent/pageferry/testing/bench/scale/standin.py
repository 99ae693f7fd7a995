"""A process that stands in for a QEMU of any size: it maps a RAM file and writes to it when told.

A QEMU of 256 GiB needs page tables and a machine that lets it start; a mapping of a file that is
mostly hole needs neither.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pageferry.kernel import procfs
from pageferry.kernel.tracking import AddressRange
from pageferry.model.blocks import PAGE_BYTES
from pageferry.testing.lab.cleanup import LabError, undone_by

PROGRAM = r"""
import mmap, os, sys, threading, time

path, length = sys.argv[1], int(sys.argv[2])
ram = mmap.mmap(os.open(path, os.O_RDWR), length)
never = threading.Event()
# Blocked in futex: the kind of thread that write tracking borrows for a moment.
threading.Thread(target=never.wait, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    step = int(line)
    began_ns = time.monotonic_ns()
    for at in range(0, length, step):
        ram[at] = (ram[at] + 1) % 255 + 1
    print("written", time.monotonic_ns() - began_ns, flush=True)
"""


class StandIn:
    """The process. `addresses` is where it maps the file."""

    def __init__(self, path: Path, length_bytes: int) -> None:
        self._path = path
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path), str(length_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    @property
    def addresses(self) -> AddressRange:
        """Where it maps the file."""
        status = self._path.stat()
        (entry,) = procfs.ranges_of_file(self.pid, status.st_dev, status.st_ino)
        return AddressRange(entry.start, entry.end)

    def wait_ready(self) -> None:
        """Wait until it maps the file."""
        self._expect("ready")

    def write_every(self, step_bytes: int) -> int:
        """Have it write one byte every so many. How long that took, in ns."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{step_bytes}\n")
        self._process.stdin.flush()
        return int(self._expect("written"))

    def page_table_bytes(self) -> int:
        """What its page tables take."""
        return status_bytes(self.pid, "VmPTE")

    def stop(self) -> None:
        """End it, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _expect(self, word: str) -> str:
        """What it says after this word."""
        assert self._process.stdout is not None
        said, _, rest = self._process.stdout.readline().strip().partition(" ")
        if said != word:
            raise LabError(f"the process that stands in for QEMU said {said!r}, not {word!r}")
        return rest


@contextlib.contextmanager
def stand_in(path: Path, length_bytes: int) -> Iterator[StandIn]:
    """The process, with *path* made a sparse file of this length; ended afterwards."""
    with path.open("wb") as file:
        file.truncate(length_bytes // PAGE_BYTES * PAGE_BYTES)
    child = StandIn(path, length_bytes)
    with undone_by(child.stop):
        child.wait_ready()
        yield child


def status_bytes(pid: int, name: str) -> int:
    """A size of /proc/PID/status, such as VmPTE or RssAnon; 0 when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return 0
