"""Disks of Linux guests: images whose every 16 bytes are known, read by QEMU past the host's cache.

A sector of 512 bytes holds its stamp over and over: the disk's salt and the sector's number. So a
page of guest memory that holds a block of a disk says of which one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.cache import cache_folder, cached
from pageferry.testing.lab.cleanup import lab_name, left_by_the_dead, undone_by
from pageferry.testing.lab.packages import QemuBinary

MIB = 1024 * 1024
SECTOR_BYTES = 512
STAMP = struct.Struct("<QQ")

AIO_MODES = ("threads", "native", "io_uring")
"""How QEMU can read a disk: preadv in threads, Linux AIO, io_uring."""

PROBE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class LabDisk:
    """One virtio-blk disk, opened with ``cache=none``, and read-only unless it is `writable`.

    `path`: an image or a device.
    """

    name: str
    path: Path
    aio: str = "threads"
    writable: bool = False

    def arguments(self) -> tuple[str, ...]:
        """QEMU's arguments for it. The guest knows it by its name, as the virtio serial."""
        device = f"virtio-blk-pci,drive=drive-{self.name},serial={self.name}"
        return (
            *_drive(f"drive-{self.name}", self.path, self.aio, writable=self.writable),
            *("-device", device),
        )


def pattern_image(name: str, size_mib: int) -> Path:
    """An image of that size with the stamps of disk `name`; made once, to be read only."""

    def make(folder: Path) -> None:
        salt = salt_of(name)
        repeats = SECTOR_BYTES // STAMP.size
        sectors = size_mib * MIB // SECTOR_BYTES
        with (folder / "image").open("wb") as image:
            for first in range(0, sectors, MIB // SECTOR_BYTES):
                numbers = range(first, first + MIB // SECTOR_BYTES)
                image.write(b"".join(STAMP.pack(salt, number) * repeats for number in numbers))

    return cached(f"disks/{name}-{size_mib}", make) / "image"


@contextlib.contextmanager
def blank_image(size_mib: int) -> Iterator[Path]:
    """An image of that size full of zeros, to be written; removed at the end."""
    folder = cache_folder()
    for name in os.listdir(folder):
        if left_by_the_dead(name) and name.endswith(".disk"):
            (folder / name).unlink(missing_ok=True)
    path = folder / lab_name("image.disk")
    with undone_by(lambda: path.unlink(missing_ok=True)):
        path.write_bytes(bytes(size_mib * MIB))
        yield path


def salt_of(name: str) -> int:
    """The salt of the disk with this name: 64 bits that nothing else in memory begins with."""
    return int.from_bytes(hashlib.sha256(f"pageferry {name}".encode()).digest()[:8], "little")


@functools.cache
def why_not(binary: QemuBinary, aio: str) -> str | None:
    """Why this QEMU cannot read a disk here in this way, in its own words; None when it can."""
    image = pattern_image("probe", 1)
    done = subprocess.run(
        binary.command(
            *("-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"),
            *_drive("probe", image, aio),
        ),
        input='{"execute":"qmp_capabilities"}{"execute":"quit"}',
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S,
        check=False,
        env=binary.full_environment(),
    )
    return done.stderr.strip() if done.returncode else None


def _drive(node: str, path: Path, aio: str, *, writable: bool = False) -> tuple[str, str]:
    readonly = "off" if writable else "on"
    options = f"if=none,id={node},format=raw,cache=none,aio={aio},readonly={readonly}"
    return ("-drive", f"{options},file={path}")
