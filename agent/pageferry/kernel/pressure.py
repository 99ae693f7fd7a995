"""Pressure stall information: for how long tasks have waited for memory or I/O.

Documentation/accounting/psi.rst. ``some total`` counts microseconds in which at least one task
waited; it only grows. Kernels may be built or booted without it (``psi=0``), and cgroups of version
1 have none; but the unified hierarchy does also where it is mounted beside version 1.
"""

from __future__ import annotations

import os
from pathlib import Path


def host_some_us(resource: str) -> int | None:
    """``some total`` of the host for *resource* (memory, io, cpu); None where there is no PSI."""
    return some_us(Path("/proc/pressure") / resource)


def some_us(path: Path) -> int | None:
    """``some total`` of a pressure file; None where it cannot be read."""
    try:
        first = path.read_text().splitlines()[0]
        return int(first.rpartition("total=")[2])
    except (OSError, ValueError, IndexError):
        # EOPNOTSUPP: booted with psi=0. ENODEV: the cgroup is gone.
        return None


def memory_pressure_file(pid: int, proc: Path = Path("/proc")) -> Path | None:
    """memory.pressure of the unified cgroup that process *pid* is in.

    None for the topmost one, whose figures are the host's, and where the unified hierarchy is not
    mounted. *proc* is another /proc for tests.
    """
    name = None
    for line in (proc / str(pid) / "cgroup").read_text().splitlines():
        if line.startswith("0::"):
            name = line[3:]
    if name is None or name == "/":
        return None
    for line in (proc / "self" / "mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        if tail.split(" ", 1)[0] != "cgroup2":
            continue
        root, mount = fields.split()[3:5]
        relative = os.path.relpath(name, root)
        if not relative.startswith("..") and relative != ".":
            return Path(mount) / relative / "memory.pressure"
    return None
