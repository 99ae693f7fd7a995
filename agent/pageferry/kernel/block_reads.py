"""What has been read from block devices, swap among it: by everybody, and by this process.

Both are counted where a read is submitted (block/blk-core.c, submit_bio), so that their difference
is what others read, exact at any moment. Loop devices read twice: what is read through one counts
for its reader, and once more for the kernel's thread that reads the file below it.
"""

from __future__ import annotations

from pathlib import Path


def host_bytes(path: Path = Path("/proc/vmstat")) -> int:
    """By everybody since boot (``pgpgin``, in KiB); 0 where the kernel does not count."""
    return _field(path, "pgpgin ") * 1024


def own_bytes(path: Path = Path("/proc/self/io")) -> int:
    """By all threads of this process so far (``read_bytes``, Documentation/filesystems/proc.rst).

    0 where it cannot be read, which is without CONFIG_TASK_IO_ACCOUNTING.
    """
    return _field(path, "read_bytes: ")


def _field(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line[len(name) :]) for line in lines if line.startswith(name)), 0)
