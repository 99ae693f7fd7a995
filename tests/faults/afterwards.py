"""What must be true after any fault in any phase, checked in one place."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pageferry.cli.exit_codes import ExitCode
from pageferry.kernel.cpu_throttle import PREFIX as THROTTLE_PREFIX
from pageferry.migration.estimating import COSTS_FILE
from pageferry.migration.journal import JournalState, journals, read_journal
from pageferry.model.phase import DestinationPhase, SourcePhase, is_over
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.daemons import LabDaemon
from pageferry.testing.lab.qemus import LabQemu
from tests.faults.cases import Owner, S
from tests.faults.world import PATIENCE_S, World, descriptors_of, eventually, threads_cgroups
from tests.migration.conftest import assert_verified
from tests.migration.pairs import traces_in

BY_ITSELF_S = 8.0
"""After so long `pageferry recover` is asked as well: a daemon waits up to a minute between its
tries."""

RECOVER_INTERVAL_S = 1.0

ESTABLISHED = "01"
"""As /proc/net/tcp has it."""

DESCRIPTORS_S = 20.0

KNOWN_FILES = {"lock", "history.jsonl", COSTS_FILE}
"""What a state directory holds beside journals."""

OWNER_AFTER = {
    (SourcePhase.COMPLETED, DestinationPhase.RUNNING): Owner.DESTINATION,
    (SourcePhase.COMPLETED, DestinationPhase.LOST): Owner.ENDED,
    (SourcePhase.FAILED, DestinationPhase.ABORTED): Owner.SOURCE,
    (SourcePhase.CANCELLED, DestinationPhase.ABORTED): Owner.SOURCE,
    (SourcePhase.FAILED, None): Owner.SOURCE,
    (SourcePhase.CANCELLED, None): Owner.SOURCE,
    (None, None): Owner.SOURCE,
}
"""Whose the guest is by what the two journals say. Any other pair contradicts itself."""

SAYS_OF = {
    ExitCode.COMPLETED: {Owner.DESTINATION},
    ExitCode.FAILED: {Owner.SOURCE},
    ExitCode.REFUSED: {Owner.SOURCE},
    ExitCode.CANCELLED: {Owner.SOURCE},
    ExitCode.UNKNOWN: set(Owner),
    ExitCode.UNREACHABLE: set(Owner),
}
"""Whose the guest is by how `pageferry migrate` ended."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case."""

    owner: Owner
    status: ExitCode
    """Of `pageferry migrate`."""
    message: str
    guest_state: str
    advice: str
    asked_recover: bool
    """Whether the daemons' own settling was not waited for any more."""


def assert_settled(world: World) -> Outcome:
    """The guest has one clear owner and all its memory, nothing is left anywhere, and the operator
    was told what to do. Whose it is, is returned."""
    assert world.operator is not None
    world.operator.wait()
    eventually(lambda: not world.processes(), lambda: f"workers ended\n{world.logs()}")
    asked = _settle_journals(world)
    owner = _owner(world)
    status = _assert_told(world, owner)
    _assert_runs_once(world, owner)
    if owner is not Owner.ENDED:
        _assert_memory(world)
    _assert_nothing_in_qemus(world, owner)
    _assert_nothing_on_hosts(world)
    error = _error_of(world)
    return Outcome(
        owner, status, error["message"], error["guest-state"], error["advice"], asked_recover=asked
    )


def _settle_journals(world: World) -> bool:
    """Wait until both journals are at an end. Returns whether `recover` had to be asked."""
    began_s = asked_s = time.monotonic()
    asked = False

    def settled() -> bool:
        nonlocal asked, asked_s
        if all(state is None or is_over(state.known_phase) for state in _states(world).values()):
            return True
        now_s = time.monotonic()
        if now_s - began_s > BY_ITSELF_S and now_s - asked_s > RECOVER_INTERVAL_S:
            asked, asked_s = True, now_s
            for daemon in world.daemons:
                daemon.run_cli("recover", world.migration_id)
        return False

    eventually(settled, lambda: f"{world.pair.journal_phases()}\n{world.logs()}")
    return asked


def _states(world: World) -> dict[str, JournalState | None]:
    found: dict[str, JournalState | None] = {"source": None, "destination": None}
    for daemon in world.daemons:
        for path in journals(daemon.state_directory):
            found[path.name.split(".")[1]] = read_journal(path)
    return found


def _owner(world: World) -> Owner:
    states = _states(world)
    pair: Any = tuple(None if state is None else state.known_phase for state in states.values())
    assert pair in OWNER_AFTER, f"the journals contradict each other: {pair}\n{world.logs()}"
    owner = OWNER_AFTER[pair]
    holder = {Owner.SOURCE: world.pair.source, Owner.DESTINATION: world.pair.destination}.get(owner)
    # A guest ends with its owner's QEMU, as any guest does.
    return Owner.ENDED if holder is None or status_of(holder) == "gone" else owner


def _assert_told(world: World, owner: Owner) -> ExitCode:
    """What the operator heard is true, and of use."""
    operator = world.operator
    assert operator is not None
    assert operator.status is not None
    status = ExitCode(operator.status)
    fits = SAYS_OF[status] | {Owner.ENDED}
    assert owner in fits, f"{status!r}, but the guest is the {owner.value}'s\n{world.logs()}"
    if status is ExitCode.COMPLETED:
        return status
    error = _error_of(world)
    # Who has cancelled it needs no advice.
    parts = ("message", "guest-state", *(() if status is ExitCode.CANCELLED else ("advice",)))
    for part in parts:
        assert error[part], f"no {part}: {error}\n{world.logs()}"
    if owner is Owner.ENDED and status is ExitCode.FAILED and world.case.phase is not S.LOOK:
        assert "ended with its QEMU" in error["guest-state"], error
    return status


def _error_of(world: World) -> dict[str, str]:
    operator = world.operator
    assert operator is not None
    error = {"message": "", "guest-state": "", "advice": "", **operator.error}
    return {key: str(value) for key, value in error.items()}


def _assert_runs_once(world: World, owner: Owner) -> None:
    states = [status_of(qemu) for qemu in world.qemus]
    running = [state == "running" for state in states]
    wanted = [owner is Owner.SOURCE, owner is Owner.DESTINATION]
    assert running == wanted, f"QEMUs are {states}, the owner is {owner.value}\n{world.logs()}"


def status_of(qemu: LabQemu) -> str:
    """Its run state. One that closes its monitor is about to end: ``gone``."""
    try:
        return qemu.status()
    except (LabError, OSError):
        qemu.process.wait(PATIENCE_S)
        return qemu.status()


def _assert_memory(world: World) -> None:
    world.pair.guest.wait_samples(2)
    if not world.has_lost_pages:
        assert_verified(world.pair.guest)


def _assert_nothing_in_qemus(world: World, owner: Owner) -> None:
    for qemu in world.qemus:
        if status_of(qemu) == "gone":
            continue
        traces = traces_in(qemu)
        assert (traces.userfaultfds, traces.protected_ranges) == (0, 0), (qemu.name, traces)
        if status_of(qemu) == "running":
            assert traces.capabilities == world.before.source.capabilities, (qemu.name, traces)
        left = [text for text in threads_cgroups(qemu.pid).values() if THROTTLE_PREFIX in text]
        assert not left, f"{qemu.name} is throttled: {left}"
    if owner is Owner.SOURCE:
        assert traces_in(world.pair.source) == world.before.source
        now = threads_cgroups(world.pair.source.pid)
        moved = {t: g for t, g in now.items() if world.before.cgroups.get(t, g) != g}
        assert not moved, f"threads of the guest's QEMU are in other cgroups: {moved}"


def _assert_nothing_on_hosts(world: World) -> None:
    for daemon in world.daemons:
        _assert_nothing_on_host(world, daemon)
    assert not _throttle_cgroups(world.migration_id)


def _assert_nothing_on_host(world: World, daemon: LabDaemon) -> None:
    eventually(lambda: not daemon.workers(), f"{daemon.name} has no children")
    eventually(lambda: not _connections(daemon), f"{daemon.name} has no connections")
    names = {path.name for path in daemon.state_directory.iterdir()}
    left = {name for name in names - KNOWN_FILES if not name.endswith(".journal")}
    assert not left, f"{daemon.name} left files: {left}"
    if daemon.process.pid != world.before.processes[daemon.name]:
        return  # another process, with other descriptors
    had = world.before.descriptors[daemon.name]
    eventually(
        lambda: descriptors_of(daemon) <= had,
        lambda: f"{daemon.name} has {descriptors_of(daemon)} descriptors open, and had {had}",
        DESCRIPTORS_S,
    )


def _connections(daemon: LabDaemon) -> list[str]:
    """TCP connections at this daemon's port, in its network."""
    port = f":{daemon.port:04X}"
    lines = Path(f"/proc/{daemon.process.pid}/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return [words[1] for words in fields if words[1].endswith(port) and words[3] == ESTABLISHED]


def _throttle_cgroups(migration_id: str) -> list[Path]:
    found: list[Path] = []
    for mount in Path("/sys/fs/cgroup").iterdir():
        with contextlib.suppress(OSError):
            found += mount.rglob(f"{THROTTLE_PREFIX}{migration_id}*")
    return found
