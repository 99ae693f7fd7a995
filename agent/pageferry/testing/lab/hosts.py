"""The host as the lab sees it: RAM files, their residency, swap traffic, faults, pressure.

Measured independently of ``pageferry.kernel``, so that tests can hold the one against the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.residency import ResidencyBytes
from pageferry.testing.lab.cleanup import LabError, lab_name, left_by_the_dead, undone_by

SHM = Path("/dev/shm")
SCRATCH = Path("/tmp")

SYS_CACHESTAT = 451
"""cachestat(2), Linux 6.5, the same number on every architecture."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Range(ctypes.Structure):
    """struct cachestat_range of linux/mman.h."""

    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    """struct cachestat of linux/mman.h."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")
    )


@dataclass(frozen=True, slots=True)
class SwapTraffic:
    """The whole host's swap traffic since boot."""

    in_bytes: int
    out_bytes: int

    def __sub__(self, earlier: SwapTraffic) -> SwapTraffic:
        return SwapTraffic(self.in_bytes - earlier.in_bytes, self.out_bytes - earlier.out_bytes)


def swap_traffic() -> SwapTraffic:
    """pswpin and pswpout of /proc/vmstat."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    values = dict(line.split() for line in lines)
    return SwapTraffic(int(values["pswpin"]) * PAGE_BYTES, int(values["pswpout"]) * PAGE_BYTES)


def cached_bytes(descriptor: int, offset_bytes: int, length_bytes: int) -> int:
    """How much of this range of a file is in the page cache (for shmem: resident). LabError
    without cachestat(2).
    """
    wanted = _Range(offset_bytes, length_bytes)
    found = _Cachestat()
    if _libc.syscall(
        SYS_CACHESTAT, descriptor, ctypes.byref(wanted), ctypes.byref(found), ctypes.c_uint(0)
    ):
        number = ctypes.get_errno()
        raise LabError(f"cachestat: {os.strerror(number)}; the lab needs Linux 6.5 and root")
    return int(found.cache) * PAGE_BYTES


def residency_of(descriptor: int) -> ResidencyBytes:
    """Residency of a whole shmem file. Pages in the swap cache count as swapped."""
    status = os.fstat(descriptor)
    allocated = min(status.st_blocks * 512, status.st_size)
    resident = min(cached_bytes(descriptor, 0, status.st_size), allocated)
    return ResidencyBytes(
        resident_bytes=resident,
        swapped_bytes=allocated - resident,
        hole_bytes=status.st_size - allocated,
    )


@contextlib.contextmanager
def ram_file(what: str) -> Iterator[Path]:
    """A name in /dev/shm for one guest's RAM; QEMU makes the file, the lab removes it."""
    for name in os.listdir(SHM):
        if left_by_the_dead(name):
            (SHM / name).unlink(missing_ok=True)
    path = SHM / lab_name(f"{what}.ram")
    with undone_by(lambda: path.unlink(missing_ok=True)):
        yield path


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for sockets and logs, with a name short enough for UNIX sockets' 107 bytes."""
    for name in os.listdir(SCRATCH):
        if left_by_the_dead(name):
            shutil.rmtree(SCRATCH / name, ignore_errors=True)
    path = SCRATCH / lab_name("t")
    path.mkdir(mode=0o700)
    with undone_by(lambda: shutil.rmtree(path, ignore_errors=True)):
        yield path


def major_faults(pid: int, thread_id: int | None = None) -> int:
    """Faults that had to wait for a page, of a whole process or of one of its threads."""
    folder = f"/proc/{pid}" if thread_id is None else f"/proc/{pid}/task/{thread_id}"
    # The fields after the command's name, which may hold spaces: majflt is the tenth of them.
    return int(Path(folder, "stat").read_text().rpartition(")")[2].split()[9])


def minor_faults(pid: int, thread_id: int) -> int:
    """Faults of one thread that had to wait for nothing."""
    return int(Path(f"/proc/{pid}/task/{thread_id}/stat").read_text().rpartition(")")[2].split()[7])


def userfaultfds_in(pid: int) -> int:
    """The userfaultfds that a process has open."""
    found = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += "userfaultfd" in os.readlink(each)
    return found


def tracked_ranges_in(pid: int) -> int:
    """The mappings of a process that are under a userfaultfd, its own or another's (VmFlags:
    Documentation/filesystems/proc.rst)."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    flags = [set(line.split()[1:]) for line in lines if line.startswith("VmFlags:")]
    return sum(bool(found & {"uw", "um", "ui"}) for found in flags)


def memory_stall_us() -> int | None:
    """Microseconds in which some task waited for memory (PSI); None where PSI is off."""
    try:
        text = Path("/proc/pressure/memory").read_text()
    except OSError:
        return None
    return int(text.splitlines()[0].rpartition("total=")[2])


def is_root() -> bool:
    """Whether cgroups, swap and ptrace of other users' QEMUs are within our rights."""
    return os.geteuid() == 0
