"""Archives for the kernel's initramfs: cpio in the "newc" format.

The format is described in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import PurePosixPath

MAGIC = b"070701"
END = "TRAILER!!!"


def archive(files: Mapping[str, bytes], executable: frozenset[str] = frozenset()) -> bytes:
    """An archive of regular files by path (``modules/virtio.ko``), owned by root, with the folders
    that they lie in. `executable`: the paths that get mode 0755, all others 0644.
    """
    folders = {
        str(parent)
        for name in files
        for parent in PurePosixPath(name).parents
        if str(parent) != "."
    }
    entries = [_entry(name, stat.S_IFDIR | 0o755, b"") for name in sorted(folders)]
    for name, data in files.items():
        mode = 0o755 if name in executable else 0o644
        entries.append(_entry(name, stat.S_IFREG | mode, data))
    entries.append(_entry(END, 0, b""))
    return b"".join(entries)


def _entry(name: str, mode: int, data: bytes) -> bytes:
    name_bytes = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device and rdevice (two words each), name, check
    numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name_bytes), 0)
    head = MAGIC + b"".join(b"%08x" % number for number in numbers) + name_bytes
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
