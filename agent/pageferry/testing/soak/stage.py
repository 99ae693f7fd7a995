"""The two hosts of a soak: a daemon each, the wires between them, and what goes on there now."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pageferry.control.info import FINAL_STATUSES
from pageferry.migration.journal import JournalError, read_journal
from pageferry.model.phase import is_over
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.daemons import LabDaemon, run_daemon
from pageferry.testing.lab.hosts import scratch_folder
from pageferry.testing.lab.monitor import LabMonitor
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.soak.crossing import Crossing, crossing
from pageferry.testing.soak.travellers import (
    HOSTS,
    Traveller,
    freestanding_traveller,
    linux_traveller,
)

MARK = "PAGEFERRY_SOAK"
"""In the environment of both daemons, and of all that they start."""

POLL_S = 0.05


@dataclass(slots=True)
class Stage:
    """Everything that a soak works with."""

    folder: Path
    daemons: dict[str, LabDaemon]
    crossings: dict[str, Crossing]
    """By the host that is reached through it."""
    travellers: dict[str, Traveller]
    open_files: dict[int, int] = field(default_factory=dict)
    """How many files each daemon, by its process, had open when nothing went on."""

    def ask(self, host: str, command: str, **arguments: Any) -> Any:
        """A command of that host's control socket. LabError when it fails or nobody is there."""
        try:
            with contextlib.closing(LabMonitor(self.daemons[host].control_socket)) as control:
                return control.execute(command, **arguments)
        except OSError as error:
            raise LabError(f"the daemon of {host}: {error}") from error

    def phase(self, host: str, migration_id: str, role: str) -> str | None:
        """The last phase in that journal on that host; None where there is none."""
        path = self.journal(host, migration_id, role)
        with contextlib.suppress(JournalError):
            state = read_journal(path) if path.exists() else None
            return None if state is None else state.phase
        return None

    def journal(self, host: str, migration_id: str, role: str) -> Path:
        """Where it is."""
        return self.daemons[host].state_directory / f"{migration_id}.{role}.journal"

    def worker(self, host: str, migration_id: str, role: str) -> int | None:
        """The process that works on that journal: whoever holds its lock."""
        try:
            status = self.journal(host, migration_id, role).stat()
        except FileNotFoundError:
            return None
        inode = f":{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].endswith(inode):
                pid = int(words[4])
                return None if pid == self.daemons[host].process.pid else pid
        return None

    def restart_the_dead(self) -> None:
        """As systemd would, or an operator."""
        for daemon in self.daemons.values():
            if daemon.process.poll() is not None:
                daemon.start()

    def wait_settled(self, migration_id: str, timeout_s: float) -> str:
        """Until the migration is over on both hosts. Returns what is not, empty when all is."""
        deadline_s = time.monotonic() + timeout_s
        while (unsettled := self._unsettled(migration_id)) and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        return unsettled

    def _unsettled(self, migration_id: str) -> str:
        found: list[str] = []
        for host in HOSTS:
            found += self._open_on(host, migration_id)
        return "; ".join(found)

    def _open_on(self, host: str, migration_id: str) -> Iterator[str]:
        for role in ("source", "destination"):
            path = self.journal(host, migration_id, role)
            if not path.exists():
                continue
            try:
                state = read_journal(path)
            except JournalError as error:
                yield f"{host}: {error}"
                continue
            if state is not None and not is_over(state.known_phase):
                yield f"{host}: {role}: {state.phase}"
            elif self.worker(host, migration_id, role) is not None:
                yield f"{host}: {role}: its worker goes on"
        if self.daemons[host].process.poll() is not None:
            return
        with contextlib.suppress(LabError):  # it has not known of it, or not of this one
            info = self.ask(host, "query-migrate", migration_id=migration_id)
            if info.get("status") not in (*FINAL_STATUSES, None, "none"):
                yield f"{host}: query-migrate says {info['status']}"


@contextlib.contextmanager
def stage(binary: QemuBinary) -> Iterator[Stage]:
    """Two hosts and a guest of each kind on the first. Swap must be on."""
    with contextlib.ExitStack() as stack:
        travellers: dict[str, Traveller] = {
            "freestanding": stack.enter_context(freestanding_traveller(binary)),
            "linux": stack.enter_context(linux_traveller(binary)),
        }
        folder = stack.enter_context(scratch_folder())
        daemons = {
            host: stack.enter_context(
                run_daemon(
                    host,
                    folder / host[0],
                    {name: each.guest.folder / f"{host}.qmp" for name, each in travellers.items()},
                    environment={MARK: str(os.getpid())},
                )
            )
            for host in HOSTS
        }
        crossings = {
            host: stack.enter_context(crossing(daemon.port)) for host, daemon in daemons.items()
        }
        yield Stage(folder, daemons, crossings, travellers)


def kill(pid: int | None) -> bool:
    """SIGKILL, and wait until it is gone. Whether there was anything to kill."""
    if pid is None or not send(pid, signal.SIGKILL):
        return False
    wait_until(lambda: not _lives(pid), 10)
    return True


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal. Whether that process was there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def wait_until(reached: Callable[[], bool], timeout_s: float) -> bool:
    """Whether *reached* became true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not (done := reached()) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    return done


def _lives(pid: int) -> bool:
    """A zombie that its parent has not reaped yet does not live."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
