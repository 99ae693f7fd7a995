"""Parsing of /proc, and looks at this very process."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pageferry.kernel import procfs


def test_line_of_a_deleted_memfd_with_blanks() -> None:
    entry = procfs.parse_maps_line(
        "7f0000000000-7f0040000000 rw-s 00100000 fd:1f 1234567890    /memfd:my ram (deleted)\n"
    )
    assert entry == procfs.MapEntry(
        start=0x7F0000000000,
        end=0x7F0040000000,
        perms="rw-s",
        offset=0x100000,
        dev=os.makedev(0xFD, 0x1F),
        inode=1234567890,
        path="/memfd:my ram (deleted)",
    )


def test_line_without_a_path() -> None:
    assert procfs.parse_maps_line("1000-2000 ---p 00000000 00:00 0 \n").path == ""


@pytest.mark.parametrize("line", ["", "Rss:   4 kB\n", "1000 rw-s 0 00:00 0"])
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not a line"):
        procfs.parse_maps_line(line)


def test_own_file_is_found_in_two_parts_and_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "a file"
    path.write_bytes(bytes(16384))
    status = path.stat()
    with path.open("r+b") as file:
        first = mmap.mmap(file.fileno(), 4096)
        second = mmap.mmap(file.fileno(), 4096, offset=8192)
    parts = procfs.ranges_of_file(os.getpid(), status.st_dev, status.st_ino)
    assert sorted(part.offset for part in parts) == [0, 8192]
    path.unlink()
    fd = procfs.open_ram_file(os.getpid(), parts[0], writable=True)
    assert os.fstat(fd).st_ino == status.st_ino
    os.close(fd)
    first.close()
    second.close()


def test_other_mapper_is_named() -> None:
    program = (
        "import mmap, sys; m = mmap.mmap(int(sys.argv[1]), 4096); print(1, flush=True); input()"
    )
    fd = os.memfd_create("pageferry-test")
    os.ftruncate(fd, 4096)
    status = os.fstat(fd)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(fd)],
        pass_fds=[fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        dev, inode = status.st_dev, status.st_ino
        assert procfs.other_mappers(dev, inode, exclude={child.pid}) == []
        found = procfs.other_mappers(dev, inode, exclude=set())
        assert found == [(child.pid, procfs.command_name(child.pid))]
        child.communicate(b"\n")
    os.close(fd)


def test_kinds_of_files(tmp_path: Path) -> None:
    fd = os.memfd_create("pageferry-test")
    assert procfs.is_shmem(fd)
    assert not procfs.is_hugetlb(fd)
    os.close(fd)
    fd = os.open("/proc/self/maps", os.O_RDONLY)
    assert not procfs.is_shmem(fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        procfs.is_shmem(fd)


def test_hugetlb_memfd_is_known_for_what_it_is() -> None:
    fd = os.memfd_create("pageferry-test", os.MFD_HUGETLB)
    assert procfs.is_hugetlb(fd)
    assert not procfs.is_shmem(fd)
    os.close(fd)


def test_fault_counts_cover_all_threads() -> None:
    faults = procfs.major_faults(os.getpid())
    assert os.getpid() in faults.by_thread
    assert faults.total >= sum(faults.by_thread.values()) >= 0


def test_descriptors_show_what_they_point_at() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    assert "/dev/null" in procfs.fd_links(os.getpid())
    os.close(fd)


def test_host_figures_are_plausible() -> None:
    assert 0 < procfs.host_headroom_bytes() < 1 << 50
    assert procfs.vmstat().pswpin >= 0


def test_smaps_has_flags_and_sizes() -> None:
    area = mmap.mmap(-1, 1 << 20)
    area[:4096] = bytes(4096)
    details = {d.entry.start: d for d in procfs.smaps_of(os.getpid())}
    assert len(details) > 10
    shared = [d for d in details.values() if "sh" in d.flags and "wr" in d.flags]
    assert any(d.sizes_bytes["Size"] == 1 << 20 and d.sizes_bytes["Rss"] == 4096 for d in shared)
    area.close()
