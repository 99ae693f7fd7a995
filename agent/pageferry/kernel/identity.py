"""Which process it is, beyond its number: numbers and socket paths are used again.

A process is the one that it was if its number, its start time and the boot are the same (proc(5):
field 22 of stat, in clock ticks since boot; /proc/sys/kernel/random/boot_id).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ENDED_STATES = "ZX"
"""States of a process that has ended and only waits to be reaped (proc(5), field 3)."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process for good. ``start_ticks`` counts from boot, in USER_HZ."""

    pid: int
    start_ticks: int
    boot_id: str

    def as_dict(self) -> dict[str, Any]:
        """For a journal."""
        return {"pid": self.pid, "start-ticks": self.start_ticks, "boot-id": self.boot_id}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProcessIdentity:
        """As `as_dict` has it. Raises ValueError, KeyError or TypeError on anything else."""
        return cls(int(values["pid"]), int(values["start-ticks"]), str(values["boot-id"]))

    @property
    def is_alive(self) -> bool:
        """Whether that very process still runs. A zombie does not."""
        return process_identity(self.pid) == self


def process_identity(pid: int) -> ProcessIdentity | None:
    """The identity of process *pid*; None when there is none, or it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            # The name in field 2 may hold spaces and brackets.
            fields = stat.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in _ENDED_STATES:
        return None
    return ProcessIdentity(pid, int(fields[19]), boot_id())


def signal_process(identity: ProcessIdentity, number: signal.Signals) -> bool:
    """Send *number* to that very process. Whether it was there to be sent to."""
    try:
        fd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        # What the descriptor refers to stays the same from here on.
        if not identity.is_alive:
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def boot_id() -> str:
    """This boot of the host."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
