"""Write tracking of a real QEMU, sandboxed; qtest writes its guest's memory for us."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry.kernel import procfs
from pageferry.kernel.pageset import PageSet
from pageferry.kernel.tracking import AddressRange, WriteTracker, uffd_armed_ranges
from pageferry.model.blocks import PAGE_BYTES
from tests.support import need

pytestmark = [pytest.mark.root, pytest.mark.qemu]

RAM_BYTES = 256 << 20
QEMU = "qemu-system-x86_64"


class QtestGuest:
    """A QEMU whose guest memory is written through the qtest protocol: one line, one answer."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self._process = process
        self.pid = process.pid
        # An answer means that the machine, and so its RAM, exists.
        assert self.say("clock_step") is not None
        status = path.stat()
        (entry,) = procfs.ranges_of_file(self.pid, status.st_dev, status.st_ino)
        self.addresses = AddressRange(entry.start, entry.end)

    def say(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def write(self, page: int, value: int) -> None:
        assert self.say(f"writeb {page * PAGE_BYTES:#x} {value:#x}") == "OK"

    def read(self, page: int) -> int:
        answer, value = self.say(f"readb {page * PAGE_BYTES:#x}").split()
        assert answer == "OK"
        return int(value, 16)


@pytest.fixture
def guest(root: None, ram_path: Path) -> Iterator[QtestGuest]:
    need(shutil.which(QEMU) is not None, f"{QEMU} is missing: install qemu-system-x86")
    backend = f"memory-backend-file,id=mem0,size={RAM_BYTES},mem-path={ram_path},share=on"
    command = [QEMU, "-accel", "tcg", "-machine", "pc,memory-backend=mem0"]
    command += ["-m", str(RAM_BYTES >> 20), "-object", backend, "-smp", "2", "-S"]
    command += ["-display", "none", "-nodefaults", "-sandbox", "on", "-qtest", "stdio"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield QtestGuest(process, ram_path)
    finally:
        process.kill()
        process.communicate()


def scan(tracker: WriteTracker, guest: QtestGuest) -> set[int]:
    found = PageSet(RAM_BYTES // PAGE_BYTES)
    tracker.scan(guest.addresses, found, 0)
    return {page for start, count in found.runs() for page in range(start, start + count)}


def test_sandboxed_qemu_is_tracked_and_lives_on(guest: QtestGuest) -> None:
    pages = [256, 1000, 4096, 40000]
    guest.write(1000, 1)
    descriptors = sorted(procfs.fd_links(guest.pid))
    with contextlib.closing(WriteTracker.arm(guest.pid, [guest.addresses])) as tracker:
        assert scan(tracker, guest) == set()
        for page in pages:
            guest.write(page, page % 200 + 1)
        assert scan(tracker, guest) == set(pages)
        assert scan(tracker, guest) == set()
        assert sorted(procfs.fd_links(guest.pid)) == descriptors
    assert uffd_armed_ranges(guest.pid) == []
    assert [guest.read(page) for page in pages] == [page % 200 + 1 for page in pages]


@pytest.mark.parametrize("only_main", [False, True])
def test_many_injections_harm_no_thread_of_qemu(guest: QtestGuest, only_main: bool) -> None:
    """By way of the RCU thread, and of the main thread, which is blocked in ppoll."""
    threads = procfs.threads_of(guest.pid)
    avoid = threads[1:] if only_main else []
    for page in range(50):
        with contextlib.closing(
            WriteTracker.arm(guest.pid, [guest.addresses], avoid_threads=avoid)
        ) as tracker:
            guest.write(512 + page, 1)
            assert scan(tracker, guest) == {512 + page}
    assert procfs.threads_of(guest.pid) == threads
    assert guest.read(512) == 1
