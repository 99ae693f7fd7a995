"""Swap for the lab: the host's own, or a file, a loop device or zram of ours while it is needed.

Swap cannot lie on tmpfs, and swapon refuses some file systems (overlay): then a loop device over
the same file takes its place.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.cache import cache_folder
from pageferry.testing.lab.cleanup import LabError, lab_name, left_by_the_dead, undone_by
from pageferry.testing.lab.programs import file_system, loop_device, run, try_run

MIB = 1024 * 1024
DEFAULT_SWAP_BYTES = 3072 * MIB
SPARE_DISK_BYTES = 512 * MIB
"""What a swap file must leave free on its disk."""

PAGE_BYTES = 4096
MADV_PAGEOUT = 21
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

FILL_STEP_BYTES = 64 * MIB
"""How much is swapped at a time where swap is to be full."""

RAM_FILE_SYSTEMS = ("tmpfs", "ramfs", "devtmpfs")


@dataclass(frozen=True, slots=True)
class SwapArea:
    """Swap to use: `device` is what /proc/swaps calls it, None for the host's own."""

    device: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SwapEntry:
    """One line of /proc/swaps."""

    device: str
    size_bytes: int
    used_bytes: int


def swap_entries() -> list[SwapEntry]:
    """The areas in use now."""
    entries = []
    for line in Path("/proc/swaps").read_text().splitlines()[1:]:
        device, _kind, size, used, _priority = line.split()[:5]
        entries.append(SwapEntry(device, int(size) * 1024, int(used) * 1024))
    return entries


@contextlib.contextmanager
def some_swap(size_bytes: int = DEFAULT_SWAP_BYTES) -> Iterator[SwapArea]:
    """At least `size_bytes` of free swap: the host's when it has that much, else a file of ours."""
    theirs = [entry for entry in swap_entries() if "pageferry-lab" not in entry.device]
    theirs = [entry for entry in theirs if not entry.device.startswith("/dev/loop")]
    free_bytes = sum(entry.size_bytes - entry.used_bytes for entry in theirs)
    if free_bytes >= size_bytes:
        yield SwapArea(device=None, size_bytes=free_bytes)
        return
    with swap_file(size_bytes) as area:
        yield area


@contextlib.contextmanager
def swap_file(size_bytes: int = DEFAULT_SWAP_BYTES) -> Iterator[SwapArea]:
    """A swap file of our own, on a loop device where the file system cannot carry swap.

    LabError when no disk has room or the kernel refuses swap altogether (as in most containers).
    """
    folder = _folder_with_room(size_bytes)
    for name in os.listdir(folder):
        if left_by_the_dead(name) and name.endswith(".swap"):
            _switch_off(str(folder / name))
            (folder / name).unlink(missing_ok=True)
    path = folder / lab_name("file.swap")
    with undone_by(lambda: path.unlink(missing_ok=True)):
        _allocate(path, size_bytes)
        run("mkswap", "-q", str(path))
        with contextlib.ExitStack() as stack:
            device = str(path)
            stack.enter_context(undone_by(lambda: _switch_off(device)))
            try:
                run("swapon", device)
            except LabError:
                device = stack.enter_context(loop_device(path))
                stack.enter_context(undone_by(lambda: _switch_off(device)))
                run("swapon", device)
            yield SwapArea(device=device, size_bytes=size_bytes)


@contextlib.contextmanager
def zram_swap(size_bytes: int = DEFAULT_SWAP_BYTES) -> Iterator[SwapArea]:
    """A zram device as swap: page-outs take effect at once, and nothing is written to a disk."""
    device = run("zramctl", "--find", "--size", str(size_bytes)).strip()
    with undone_by(lambda: try_run("zramctl", "--reset", device)):
        run("mkswap", "-q", device)
        with undone_by(lambda: _switch_off(device)):
            run("swapon", "--priority", "100", device)
            yield SwapArea(device=device, size_bytes=size_bytes)


class OthersSwappedError(LabError):
    """Somebody else has swapped to where nothing can be read back: it did not fail. Try again."""


@dataclass(slots=True)
class FailingSwap:
    """Swap on a disk that can be made to fail: every read and write is an I/O error then."""

    device: str
    _path: Path
    _size_bytes: int
    _kept: Path

    def used_bytes(self) -> int:
        """How much lies here, whosever it is."""
        return sum(each.used_bytes for each in swap_entries() if each.device == self.device)

    @contextlib.contextmanager
    def closed_to_others(self, expected_bytes: int) -> Iterator[None]:
        """Within the block nothing more comes here: it is full. Reclaim takes what it likes, and
        whose memory cannot be read back any more is killed.

        Raises OthersSwappedError when more than *expected_bytes* lie here already.
        """
        used_bytes = self.used_bytes()
        if used_bytes > expected_bytes:
            raise OthersSwappedError(
                f"{used_bytes} bytes lie in {self.device}, and {expected_bytes} are the guest's"
            )
        with _full(lambda: self._size_bytes - PAGE_BYTES - self.used_bytes()):
            yield

    def fail(self) -> None:
        """From now on nothing can be read or written, without any word of it before."""
        run("sync", str(self._path))
        shutil.copyfile(self._path, self._kept)
        # A disk that has shrunk refuses what is beyond its end.
        os.truncate(self._path, PAGE_BYTES)
        run("losetup", "--set-capacity", self.device)

    def heal(self) -> None:
        """Give back what lay there. Does nothing when it has not failed."""
        if self._kept.exists():
            shutil.copyfile(self._kept, self._path)
            os.truncate(self._path, self._size_bytes)
            run("losetup", "--set-capacity", self.device)
            self._kept.unlink()


@contextlib.contextmanager
def failing_swap(size_bytes: int) -> Iterator[FailingSwap]:
    """A swap area of our own, which is used before all others. Needs root and loop devices."""
    folder = _folder_with_room(size_bytes)
    path, kept = folder / lab_name("failing.img"), folder / lab_name("failing.kept")
    with undone_by(lambda: path.unlink(missing_ok=True)):
        _allocate(path, size_bytes)
        run("mkswap", "-q", str(path))
        with loop_device(path) as device:
            swap = FailingSwap(device, path, size_bytes, kept)
            with undone_by(lambda: _switch_off(device)), undone_by(swap.heal):
                run("swapon", "--priority", "32000", device)
                yield swap


@contextlib.contextmanager
def full_swap() -> Iterator[None]:
    """Within the block all swap of this host is used up. LabError when it does not get full."""
    with _full(_free_swap_bytes):
        yield


@contextlib.contextmanager
def _full(free_bytes: Callable[[], int]) -> Iterator[None]:
    """Swap what is free. Zeros, which since Linux 6.12 take their place in swap without being
    written. LabError when something stays free."""
    with contextlib.ExitStack() as stack:
        for _step in range(2 + free_bytes() * 2 // FILL_STEP_BYTES):
            filler = stack.enter_context(mmap.mmap(-1, FILL_STEP_BYTES, flags=_PRIVATE))
            filler.write(bytes(FILL_STEP_BYTES))
            filler.madvise(MADV_PAGEOUT)
            if free_bytes() <= 0:
                break
        else:
            raise LabError(f"swap does not get full: {swap_entries()}")
        yield


def _free_swap_bytes() -> int:
    return sum(entry.size_bytes - entry.used_bytes for entry in swap_entries())


def _folder_with_room(size_bytes: int) -> Path:
    for folder in (cache_folder(), Path("/var/tmp"), Path("/tmp"), Path("/")):
        numbers = os.statvfs(folder)
        free_bytes = numbers.f_bavail * numbers.f_frsize
        if file_system(folder) not in RAM_FILE_SYSTEMS and (
            free_bytes >= size_bytes + SPARE_DISK_BYTES
        ):
            return folder
    raise LabError(f"no disk has room for a swap file of {size_bytes // MIB} MiB: free some space")


def _allocate(path: Path, size_bytes: int) -> None:
    # Swap files must have no holes; fallocate is enough where swapon knows unwritten extents
    # (ext4, xfs), and the loop device covers the rest.
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    finally:
        os.close(descriptor)


def _switch_off(device: str) -> None:
    if any(entry.device == device for entry in swap_entries()):
        run("swapoff", device)
