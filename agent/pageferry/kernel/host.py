"""What kind of host this is: capabilities, swap, compressed swap, room on tmpfs. Only looks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CAP_DAC_OVERRIDE: Final = 1
CAP_SYS_PTRACE: Final = 19
CAP_SYS_ADMIN: Final = 21
CAP_SYS_NICE: Final = 23
"""Numbers of linux/capability.h."""


@dataclass(frozen=True, slots=True)
class SwapDevice:
    """A line of /proc/swaps. ``kind`` is ``partition`` or ``file``."""

    path: str
    kind: str
    size_bytes: int
    used_bytes: int

    @property
    def is_zram(self) -> bool:
        """Whether it is compressed memory rather than a disk."""
        return Path(self.path).name.startswith("zram")


def swap_devices(path: Path = Path("/proc/swaps")) -> list[SwapDevice]:
    """The active swap devices."""
    found = []
    for line in path.read_text().splitlines()[1:]:
        name, kind, size_kib, used_kib, _priority = line.split()
        # The kernel writes blanks, tabs, newlines and backslashes in octal.
        for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            name = name.replace(code, character)
        found.append(SwapDevice(name, kind, int(size_kib) * 1024, int(used_kib) * 1024))
    return found


def zswap_is_on(path: Path = Path("/sys/module/zswap/parameters/enabled")) -> bool:
    """Whether pages on their way to swap are kept compressed in memory for a while."""
    try:
        return path.read_text().strip() == "Y"
    except OSError:  # not built in
        return False


def effective_capabilities(path: Path = Path("/proc/self/status")) -> int:
    """The effective capabilities of this process as a set of bits."""
    for line in path.read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def has_capability(capabilities: int, number: int) -> bool:
    """Whether capability *number* is in the set."""
    return bool(capabilities >> number & 1)


def free_bytes_on(path: str) -> int | None:
    """Room left on the file system of *path*; None where there is none."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def kernel_release() -> str:
    """As ``uname -r`` has it. For people: nothing is decided by it."""
    return os.uname().release
