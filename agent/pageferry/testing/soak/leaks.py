"""What a migration may have left behind, looked for from outside."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pageferry.migration.estimating import COSTS_FILE
from pageferry.testing.lab.cleanup import PREFIX
from pageferry.testing.lab.hosts import SHM, tracked_ranges_in, userfaultfds_in
from pageferry.testing.lab.qemus import LabQemu
from pageferry.testing.soak.judging import Finding, Kind
from pageferry.testing.soak.stage import MARK, POLL_S, Stage

PATIENCE_S = 20.0
"""A worker that has said its last word still lets go of a guest's memory, and a daemon reaps it."""

SPARE_FILES = 3
"""A daemon may have that many more files open than when it had just started: connections that are
about to be closed. A leak grows beyond it."""

STATE_FILES = frozenset({"history.jsonl", "lock", COSTS_FILE})
"""What a state directory holds beside journals, once each."""


def leaks(stage: Stage, qemus: list[LabQemu]) -> list[Finding]:
    """All that is still there after some patience."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (found := list(_leaks(stage, qemus))) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    return [Finding(Kind.LEAKED, each) for each in found]


def _leaks(stage: Stage, qemus: list[LabQemu]) -> Iterator[str]:
    yield from _processes(stage)
    yield from _files(stage)
    for name in os.listdir(SHM):
        if "pageferry" in name and not name.startswith(PREFIX):
            yield f"{SHM / name}"
    for qemu in qemus:
        if qemu.process.poll() is None:
            yield from _in_qemu(qemu)
    for host, wire in stage.crossings.items():
        if wire.connections:
            yield f"{wire.connections} connections between the agents, to {host}"


def _processes(stage: Stage) -> Iterator[str]:
    wanted = f"{MARK}={os.getpid()}".encode()
    daemons = {daemon.process.pid for daemon in stage.daemons.values()}
    # Each daemon may keep one worker that waits for its first migration.
    may_wait = set(daemons)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in daemons:
            continue
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in may_wait:
                    may_wait.remove(parent)
                    continue
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                yield f"process {entry.name}: {command.strip()[:200]}"


def _files(stage: Stage) -> Iterator[str]:
    for host, daemon in stage.daemons.items():
        for path in daemon.state_directory.iterdir():
            if path.suffix != ".journal" and path.name not in STATE_FILES:
                yield f"{path} on {host}"
        pid = daemon.process.pid
        now = len(os.listdir(f"/proc/{pid}/fd"))
        usual = stage.open_files.setdefault(pid, now)
        if now > usual + SPARE_FILES:
            yield f"{now - usual} files that the daemon of {host} has open"


def _in_qemu(qemu: LabQemu) -> Iterator[str]:
    if userfaultfds_in(qemu.pid):
        yield f"a userfaultfd in {qemu.name} QEMU"
    if ranges := tracked_ranges_in(qemu.pid):
        yield f"{ranges} mappings of {qemu.name} QEMU are still tracked"
    if qemu.cgroup is not None and (others := set(qemu.cgroup.pids()) - {qemu.pid}):
        yield f"processes {sorted(others)} in the cgroup of {qemu.name} QEMU"
