"""What this machine allows: two plain C programs, built when the bench runs.

No migration can be faster than copying the same bytes, or paging the same pages, without doing
anything else. A ratio to them says more than a rate does: it holds on another machine.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from pageferry.testing.lab.cache import cached, digest_of_files
from pageferry.testing.lab.cgroups import memory_cgroup
from pageferry.testing.lab.cleanup import LabError

MIB = 1024 * 1024

COMPILER = ("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")

TIMEOUT_S = 300.0

WAYS_TO_PLACE = ("pwrite", "recv")
"""Which one is faster depends on the kernel and the number of connections: the better one counts.
"""

PAGING_WINDOW_MIB = 8
"""The widest window that pageferry opens by itself."""


def copy_seconds(length_mib: int, connections: int) -> float:
    """Copy so much over loopback into fresh shared memory; the time of the faster way to place it.

    Raises LabError when the program cannot be built or fails.
    """
    program = _program("copy")
    times = [
        float(_run([str(program), str(length_mib), str(connections), way])["seconds"])
        for way in WAYS_TO_PLACE
    ]
    return min(times)


def paging_seconds(length_mib: int, limit_mib: int) -> dict[str, float]:
    """Page so much in and out again on both ends, within a memory cgroup of *limit_mib*.

    The result has ``seconds``, ``swap_in_mib`` and ``swap_out_mib``. Needs swap and root; raises
    LabError.
    """
    program = _program("paging")
    with memory_cgroup("paging", limit_mib * MIB) as group:
        push_mib = limit_mib * 15 // 16
        command = [str(program), str(length_mib), str(PAGING_WINDOW_MIB), str(push_mib)]
        found = _run(group.command(command))
    return {
        "seconds": found["seconds"],
        "swap_in_mib": found["swap_in_bytes"] / MIB,
        "swap_out_mib": found["swap_out_bytes"] / MIB,
    }


def _program(name: str) -> Path:
    source = Path(__file__).with_name(f"{name}.c")

    def make(folder: Path) -> None:
        command = [*COMPILER, str(source), "-o", str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise LabError(f"{source} does not build: {done.stderr.strip()}")

    return cached(f"limits/{name}-{digest_of_files(source)}", make) / name


def _run(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    found: dict[str, float] = json.loads(done.stdout)
    return found
