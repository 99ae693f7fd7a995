"""What /proc tells about QEMU, its mappings, and the host.

Processes may end while they are looked at: functions about one process then raise
ProcessLookupError or FileNotFoundError; functions about all processes leave it out.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

HUGETLBFS_MAGIC = 0x958458F6
TMPFS_MAGIC = 0x01021994
"""File system types as fstatfs(2) names them (include/uapi/linux/magic.h)."""

_MAPS_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)"
)


@dataclass(frozen=True, slots=True)
class MapEntry:
    """One line of /proc/PID/maps. ``dev`` is as in ``os.stat().st_dev``, ``offset`` in bytes."""

    start: int
    end: int
    perms: str
    offset: int
    dev: int
    inode: int
    path: str


def parse_maps_line(line: str) -> MapEntry:
    """One line of maps, or the first of a mapping in smaps; ValueError for anything else."""
    match = _MAPS_LINE.fullmatch(line.rstrip("\n"))
    if match is None:
        raise ValueError(f"not a line of /proc/PID/maps: {line!r}")
    start, end, perms, offset, major, minor, inode, path = match.groups()
    return MapEntry(
        start=int(start, 16),
        end=int(end, 16),
        perms=perms,
        offset=int(offset, 16),
        dev=os.makedev(int(major, 16), int(minor, 16)),
        inode=int(inode),
        path=path,
    )


def maps_of(pid: int) -> list[MapEntry]:
    """All mappings of process *pid*, by address."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
        return [parse_maps_line(line) for line in lines]


def ranges_of_file(pid: int, dev: int, inode: int) -> list[MapEntry]:
    """The mappings of that file in process *pid*, by address."""
    return [entry for entry in maps_of(pid) if (entry.dev, entry.inode) == (dev, inode)]


def other_mappers(dev: int, inode: int, exclude: set[int]) -> list[tuple[int, str]]:
    """Other processes that map that file, as (pid, command name), without those in *exclude*.

    Processes that this one may not look into are left out: run as root to see all.
    """
    needle = f" {os.major(dev):02x}:{os.minor(dev):02x} {inode} "
    found = []
    for pid in _pids():
        if pid in exclude:
            continue
        with suppress(OSError):
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
                maps_it = any(needle in line for line in lines)
            if maps_it:
                found.append((pid, command_name(pid)))
    return found


def command_name(pid: int) -> str:
    """The name of process *pid* (its ``comm``)."""
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
        return comm.read().rstrip("\n")


def command_line(pid: int) -> tuple[str, ...]:
    """The words that process *pid* was started with; none when it is gone. Bytes that are no UTF-8
    come out as replacement characters."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            data = file.read()
    except OSError:
        return ()
    words = data.removesuffix(b"\0").split(b"\0")
    return tuple(word.decode(errors="replace") for word in words) if data else ()


def open_ram_file(pid: int, entry: MapEntry, writable: bool) -> int:
    """Open the file behind the mapping *entry* of process *pid*; a new descriptor.

    By /proc/PID/map_files, which also works for a file that has been unlinked (it needs
    CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN); otherwise by one of the process's own descriptors.
    Raises OSError when neither works.
    """
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
    try:
        return os.open(f"/proc/{pid}/map_files/{entry.start:x}-{entry.end:x}", flags)
    except OSError as error:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                path = f"/proc/{pid}/fd/{name}"
                found = os.stat(path)
                if (found.st_dev, found.st_ino) == (entry.dev, entry.inode):
                    return os.open(path, flags)
        raise error


def fd_links(pid: int) -> list[str]:
    """What the descriptors of process *pid* point at, such as ``/dev/vfio/12``."""
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return links


def threads_of(pid: int) -> list[int]:
    """The threads of process *pid* in the order of their creation, the first being *pid*."""
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


@dataclass(frozen=True, slots=True)
class MajorFaults:
    """Page faults that waited for I/O, since the start: of the whole process and by thread."""

    total: int
    by_thread: dict[int, int]


def major_faults(pid: int) -> MajorFaults:
    """Major faults of process *pid*, those of ended threads included in the total."""
    by_thread = {}
    for tid in threads_of(pid):
        with suppress(OSError):
            by_thread[tid] = _major_faults_in(f"/proc/{pid}/task/{tid}/stat")
    return MajorFaults(_major_faults_in(f"/proc/{pid}/stat"), by_thread)


def _major_faults_in(path: str) -> int:
    with open(path, encoding="utf-8", errors="replace") as stat:
        # proc(5): majflt is field 12; the name in field 2 may hold spaces and brackets.
        return int(stat.read().rpartition(")")[2].split()[9])


@dataclass(frozen=True, slots=True)
class SwapTraffic:
    """Pages read from and written to swap since boot, by the whole host."""

    pswpin: int
    pswpout: int


def vmstat() -> SwapTraffic:
    """The host's swap traffic, from /proc/vmstat."""
    values = _numbers_of("/proc/vmstat")
    return SwapTraffic(values.get("pswpin", 0), values.get("pswpout", 0))


def host_headroom_bytes() -> int:
    """Memory that can be had without paging anything out (MemAvailable)."""
    return _numbers_of("/proc/meminfo")["MemAvailable"] * 1024


def is_hugetlb(fd: int) -> bool:
    """Whether the file lies on hugetlb pages."""
    return _file_system_type(fd) == HUGETLBFS_MAGIC


def is_shmem(fd: int) -> bool:
    """Whether the file is shmem: on tmpfs, or a memfd without MFD_HUGETLB."""
    return _file_system_type(fd) == TMPFS_MAGIC


_libc = ctypes.CDLL(None, use_errno=True)


def _file_system_type(fd: int) -> int:
    # struct statfs is 120 bytes on x86-64 and begins with the type; os.fstatvfs leaves it out.
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int.from_bytes(buffer.raw[:8], "little")


def _numbers_of(path: str) -> dict[str, int]:
    numbers = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            name, value = line.split()[:2]
            numbers[name.rstrip(":")] = int(value)
    return numbers


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


@dataclass(frozen=True, slots=True)
class MappingDetail:
    """One mapping of smaps: its line of maps, VmFlags, and what smaps counts, in bytes."""

    entry: MapEntry
    flags: frozenset[str]
    sizes_bytes: dict[str, int]


def smaps_of(pid: int) -> list[MappingDetail]:
    """All mappings of process *pid* in detail. Walks page tables: slow on a large process."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="surrogateescape") as lines:
        return list(_parse_smaps(lines))


def _parse_smaps(lines: Iterable[str]) -> Iterator[MappingDetail]:
    entry: MapEntry | None = None
    sizes: dict[str, int] = {}
    for line in lines:
        name, _, rest = line.partition(":")
        if " " in name or "-" in name:
            entry, sizes = parse_maps_line(line), {}
        elif name == "VmFlags" and entry is not None:
            # The last line of each mapping.
            yield MappingDetail(entry, frozenset(rest.split()), sizes)
        elif rest.endswith("kB\n"):
            sizes[name] = int(rest.split()[0]) * 1024
