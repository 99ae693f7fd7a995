"""Two hosts, a small guest between them, an operator, and a migration that is held where it is to
be struck."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pageferry.migration.worker import AT_WORK
from pageferry.testing.faults import (
    BEFORE_WRITE,
    ENABLE_VARIABLE,
    ENABLED,
    FAULTS_VARIABLE,
    go_path,
    in_phase,
    journalling,
    reached_path,
)
from pageferry.testing.lab.carrying import GUEST_NAME
from pageferry.testing.lab.cgroups import LabCgroup
from pageferry.testing.lab.daemons import ONE_HOST, LabDaemon, Network, run_daemon_pair
from pageferry.testing.lab.guests import GuestPlan, freestanding_guest
from pageferry.testing.lab.networks import LabNetwork, cable
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.qemus import LabQemu
from pageferry.testing.lab.swap import FailingSwap, failing_swap
from tests.faults.cases import IN_FLIGHT, Case, Fault, Phase
from tests.migration.pairs import Pair, Traces, traces_in

MIB = 1024 * 1024

SWAP_BYTES = 64 * MIB
LIMIT_BYTES = 512 * MIB

WORLD_VARIABLE = "PAGEFERRY_TESTS_WORLD"
"""In the environment of all that belongs to one world."""

GUARD = b"pageferry.migration.throttle_guard"

FORGET_BYTES = 4 * MIB
"""How much is reclaimed at a time."""

PATIENCE_S = 90.0
"""For what takes a second or two, and up to 30 with all of pageferry's own deadlines."""

POLL_S = 0.01

COLD_SENT_PER_S = 24 * MIB
"""So that the cold pass and the resident one last long enough to be struck amid them."""

SYS_PROCESS_MADVISE = 440
MADV_PAGEOUT = 21

_libc = ctypes.CDLL(None, use_errno=True)


def eventually(
    condition: Callable[[], Any], what: Callable[[], str] | str, patience_s: float = PATIENCE_S
) -> Any:
    """Wait until *condition* gives something true. Returns it; *what* tells why it did not."""
    deadline_s = time.monotonic() + patience_s
    while not (found := condition()):
        if time.monotonic() > deadline_s:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {patience_s:g} s: {told}")
        time.sleep(POLL_S)
    return found


class Operator:
    """``pageferry migrate --json``, as an operator starts it, and what it says."""

    def __init__(self, source: LabDaemon, destination: LabDaemon, options: Sequence[str]) -> None:
        command = source.cli("migrate", GUEST_NAME, destination.address, "--json", *options)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.status: int | None = None
        self.lines: list[dict[str, Any]] = []
        self.errors = ""

    def wait(self, timeout_s: float = PATIENCE_S) -> None:
        """Until it ends."""
        if self.status is not None:
            return
        out, self.errors = self._process.communicate(timeout=timeout_s)
        self.status = self._process.returncode
        for line in out.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                self.lines.append(json.loads(line))

    @property
    def error(self) -> dict[str, str]:
        """kind, message, guest-state and advice; empty when it completed."""
        last = self.lines[-1] if self.lines else {}
        error = last.get("error")
        return error if isinstance(error, dict) else {}

    def close(self) -> None:
        """End it, if it has not."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@dataclass(frozen=True, slots=True)
class Before:
    """What was there before the migration began."""

    source: Traces
    cgroups: Mapping[int, str]
    """Of each thread of the source's QEMU."""
    descriptors: Mapping[str, int]
    """How many each daemon had open."""
    processes: Mapping[str, int]
    """Which process each daemon was."""


@dataclass(slots=True)
class World:
    """All that one case needs. `stack` undoes what a fault has done, whatever happens."""

    case: Case
    pair: Pair
    held: Path
    network: tuple[LabNetwork, LabNetwork] | None
    before: Before
    stack: contextlib.ExitStack
    operator: Operator | None = None
    migration_id: str = ""
    swap: FailingSwap | None = None
    has_lost_pages: bool = False
    """Whether the guest's own memory is damaged, so that reading it all would end it."""

    @property
    def daemons(self) -> tuple[LabDaemon, LabDaemon]:
        """The source's and the destination's."""
        return self.pair.here, self.pair.there

    @property
    def qemus(self) -> tuple[LabQemu, LabQemu]:
        """The source's and the destination's."""
        return self.pair.source, self.pair.destination

    def begin(self, *options: str) -> None:
        """Start the migration."""
        if self.case.phase in IN_FLIGHT:
            options = (*options, "--max-bandwidth", str(COLD_SENT_PER_S))
        self.operator = Operator(*self.daemons, ("--downtime-limit", "5000", *options))
        eventually(self._has_begun, self.logs)

    def _has_begun(self) -> bool:
        found = list(self.pair.here.state_directory.glob("*.source.journal"))
        if found:
            self.migration_id = found[0].name.partition(".")[0]
        return bool(found)

    def wait_held(self, phase: Phase) -> int:
        """Until *phase* is reached and held. Returns the process that holds."""
        path = reached_path(self.held, in_phase(phase))
        eventually(path.exists, self.logs)
        return int(path.read_text())

    def release(self, phase: Phase) -> None:
        """Let the migration go on from there."""
        go_path(self.held, in_phase(phase)).touch()

    def worker(self, daemon: LabDaemon) -> int:
        """The only worker of a daemon."""
        (pid,) = daemon.workers()
        return pid

    def processes(self) -> list[int]:
        """All that works on this migration: workers, and guards of throttled guests."""
        ours = f"{WORLD_VARIABLE}={self.held}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if ours in (entry / "environ").read_bytes().split(b"\0") and _works(entry):
                        found.append(int(entry.name))
        return found

    def logs(self) -> str:
        """What both daemons said, for a failure's message."""
        told = "\n".join(f"--- {daemon.name}\n{daemon.log()}" for daemon in self.daemons)
        said = "" if self.operator is None else f"{self.operator.lines[-1:]} {self.operator.errors}"
        return f"{self.case.name}: {said}\n{told}"


@contextlib.contextmanager
def world_of(
    case: Case,
    binary: QemuBinary,
    *,
    faults: Sequence[str] = (),
    waits: Sequence[str] = (),
    defaults: Mapping[str, object] | None = None,
    **changes: Any,
) -> Iterator[World]:
    """A running guest with its cold memory in swap, ready to be migrated. *changes* to its plan.

    *faults* are asked for beside those that the case needs, and *waits* are further points at which
    it is held; *defaults* are the daemons'.
    """
    with contextlib.ExitStack() as stack:
        values: dict[str, Any] = {"ram_mib": 64, "cold_mib": 24, "hot_mib": 6, "zero_mib": 4}
        if case.fault is Fault.SWAP_UNREADABLE:
            values["limit_mib"] = LIMIT_BYTES // MIB
        plan = GuestPlan(binary, **{**values, **changes})
        guest = stack.enter_context(freestanding_guest(plan))
        limit = LIMIT_BYTES if case.fault is Fault.DESTINATION_OUT_OF_MEMORY else None
        destination = guest.start_destination(lambda machine: replace(machine, limit_bytes=limit))
        ends = stack.enter_context(cable()) if needs_network(case) else None
        held = guest.folder / "held"
        held.mkdir()
        faults = (*faults, *(f"{point}=wait:{held}" for point in waits))
        here, there = stack.enter_context(
            run_daemon_pair(
                guest.folder,
                {GUEST_NAME: guest.source.qmp_path},
                {GUEST_NAME: destination.qmp_path},
                defaults=defaults,
                environment=_environment(case, held, faults),
                network=_network(ends),
            )
        )
        pair = Pair(guest, here, there)
        stack.callback(pair.close)
        guest.wait_ready()
        swap = None
        if case.fault is Fault.SWAP_UNREADABLE:
            swap = stack.enter_context(failing_swap(SWAP_BYTES))
            # Before its swap goes the guest must end: nothing could be read back.
            stack.callback(guest.source.stop)
        page_out(guest.source, guest.layout.cold.address, guest.layout.cold.length_bytes)
        if swap is not None:
            stack.enter_context(swap.closed_to_others(guest.layout.cold.length_bytes))
            forget_swap_cache(guest.source, guest.layout.cold.length_bytes)
        repairs = stack.enter_context(contextlib.ExitStack())
        world = World(case, pair, held, ends, _before(pair), repairs, swap=swap)
        try:
            yield world
        finally:
            if world.operator is not None:
                world.operator.close()


def needs_network(case: Case) -> bool:
    """Whether the hosts are to be in networks of their own."""
    return case.fault in (Fault.NETWORK_CUT, Fault.NETWORK_HALF_OPEN, Fault.NETWORK_SLOW)


def page_out(qemu: LabQemu, address: int, length_bytes: int) -> None:
    """Put guest memory into swap, by QEMU's own mapping of it: nobody else maps it."""

    class Vector(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    for line in Path(f"/proc/{qemu.pid}/maps").read_text().splitlines():
        if qemu.ram_path is None or not line.endswith(str(qemu.ram_path)):
            continue
        begin, end = (int(word, 16) for word in line.split()[0].split("-"))
        offset = int(line.split()[2], 16)
        if offset <= address < offset + end - begin:
            pidfd = os.pidfd_open(qemu.pid)
            try:
                vector = Vector(begin + address - offset, length_bytes)
                done = _libc.syscall(
                    SYS_PROCESS_MADVISE, pidfd, ctypes.byref(vector), 1, MADV_PAGEOUT, 0
                )
            finally:
                os.close(pidfd)
            assert done == length_bytes, os.strerror(ctypes.get_errno())
            return
    raise AssertionError("QEMU does not map its RAM file")


def forget_swap_cache(qemu: LabQemu, length_bytes: int) -> None:
    """Let reclaim drop what was just swapped out: it stays in memory until there is pressure."""
    cgroup = qemu.cgroup
    assert cgroup is not None

    def is_forgotten() -> bool:
        assert cgroup is not None
        # What is still being written cannot be dropped, and others would go in its place.
        if _stat_bytes(cgroup, "writeback"):
            return False
        if _stat_bytes(cgroup, "swapcached") < length_bytes // 8:
            return True
        with contextlib.suppress(OSError):  # EBUSY: it found too little, and took what it found
            cgroup.set_limit(cgroup.usage_bytes() - FORGET_BYTES)
        cgroup.set_limit(LIMIT_BYTES)
        return False

    eventually(is_forgotten, lambda: f"the swap cache is dropped: {cgroup.stat()}", 30.0)


def _works(process: Path) -> bool:
    """Not a daemon, nor a worker that waits for its first migration."""
    is_at_work = (process / "comm").read_text().strip() == AT_WORK
    return is_at_work or GUARD in (process / "cmdline").read_bytes()


def _stat_bytes(cgroup: LabCgroup, name: str) -> int:
    stat = cgroup.stat()
    return stat[name] if name in stat else stat[f"file_{name}"]


def threads_cgroups(pid: int) -> dict[int, str]:
    """The cgroups of each thread of a process."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found[int(task.name)] = (task / "cgroup").read_text()
    return found


def descriptors_of(daemon: LabDaemon) -> int:
    """How many descriptors a daemon has open."""
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def _before(pair: Pair) -> Before:
    pair.info()  # its connection is open before descriptors are counted
    daemons = (pair.here, pair.there)
    return Before(
        source=traces_in(pair.source),
        cgroups=threads_cgroups(pair.source.pid),
        descriptors={daemon.name: descriptors_of(daemon) for daemon in daemons},
        processes={daemon.name: daemon.process.pid for daemon in daemons},
    )


def _environment(case: Case, held: Path, more: Sequence[str]) -> dict[str, str]:
    if case.fault is Fault.JOURNAL_FULL:
        faults = [f"{journalling(BEFORE_WRITE, case.phase)}=ENOSPC"]
    else:
        phases: list[Phase] = [case.phase]
        if case.phase in IN_FLIGHT:
            phases.append(IN_FLIGHT[case.phase])
        faults = [f"{in_phase(phase)}=wait:{held}" for phase in phases]
    return {
        FAULTS_VARIABLE: ",".join((*faults, *more)),
        ENABLE_VARIABLE: ENABLED,
        WORLD_VARIABLE: str(held),
    }


def _network(ends: tuple[LabNetwork, LabNetwork] | None) -> Network:
    if ends is None:
        return ONE_HOST
    return Network(ends[1].address, ends[0].prefix, ends[1].prefix)
