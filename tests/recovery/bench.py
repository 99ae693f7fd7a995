"""Real QEMUs, real daemons and real journals, for what is left over after a crash.

The QEMUs have no machine: they are up in 0.2 s, have every run state and migration state, and stop
and continue as any other.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from pageferry.kernel.identity import ProcessIdentity, process_identity
from pageferry.migration.journal import Journal, read_journal
from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.testing.faults import ENABLE_VARIABLE, ENABLED, FAULTS_VARIABLE
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.monitor import LabMonitor
from tests.support.daemon_bench import free_port

ID = "0123456789abcdef"

SOURCE_WAY = list(SourcePhase)[: list(SourcePhase).index(SourcePhase.COMMIT) + 1]
DESTINATION_WAY = list(DestinationPhase)[
    : list(DestinationPhase).index(DestinationPhase.COMMITTED) + 1
]

PATIENCE_S = 40.0


def eventually(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait until *condition* gives something true, in other processes. Returns it."""
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {patience_s:g} s: {what}")


@dataclass(slots=True)
class Qemu:
    """A QEMU with its QMP socket."""

    qmp: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def identity(self) -> ProcessIdentity:
        found = process_identity(self.process.pid)
        assert found is not None
        return found

    def ask(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command; waits while another client is connected."""
        return eventually(lambda: self._asked(command, arguments), f"QEMU answers {command}")[0]

    def _asked(self, command: str, arguments: Mapping[str, Any]) -> tuple[Any] | None:
        with contextlib.suppress(LabError, OSError), contextlib.closing(LabMonitor(self.qmp)) as m:
            return (m.execute(command, **arguments),)
        return None

    @property
    def status(self) -> str:
        return str(self.ask("query-status")["status"])

    def is_gone(self) -> bool:
        return self.process.poll() is not None

    def migrate_away(self, *, pause_before_switchover: bool) -> None:
        """Let its own migration get to pre-switchover, or to its end."""
        with contextlib.closing(LabMonitor(self.qmp)) as monitor:
            capability = {"capability": "pause-before-switchover", "state": True}
            if pause_before_switchover:
                monitor.execute("migrate-set-capabilities", capabilities=[capability])
            monitor.execute("migrate", uri="exec:cat >/dev/null")
            wanted = "pre-switchover" if pause_before_switchover else "completed"
            eventually(
                lambda: monitor.execute("query-migrate").get("status") == wanted,
                f"QEMU's migration is {wanted}",
            )

    def end(self) -> None:
        self.process.kill()
        self.process.wait(20)


@contextlib.contextmanager
def qemu(qmp: Path, *more: str) -> Iterator[Qemu]:
    """A QEMU, stopped unless told otherwise; ended at the end of the block."""
    qmp.unlink(missing_ok=True)
    command = [
        *("qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-S"),
        *("-qmp", f"unix:{qmp},server=on,wait=off", *more),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            made = Qemu(qmp, process)
            eventually(qmp.exists, "QEMU is up")
            made.ask("query-status")
            yield made
        finally:
            process.kill()


def write_journal(
    state_dir: Path,
    role: str,
    phase: SourcePhase | DestinationPhase,
    qemu: Qemu | None,
    migration_id: str = ID,
    **notes: Any,
) -> Path:
    """A journal as a worker that was killed in *phase* leaves it."""
    state_dir.mkdir(mode=0o700, exist_ok=True)
    way: list[Any] = list(SOURCE_WAY if role == "source" else DESTINATION_WAY)
    if phase in way:
        way = way[: way.index(phase) + 1]
    elif phase in (DestinationPhase.ABORTED, SourcePhase.FAILED):
        way = [way[0], phase]
    else:
        way = [*way, phase]
    first: dict[str, Any] = {"guest": "web", **notes}
    if qemu is not None:
        first |= {"qmp": str(qemu.qmp), "qemu": qemu.identity.as_dict()}

    async def write() -> Path:
        journal = Journal.create(state_dir, migration_id, role)
        for number, each in enumerate(way):
            await journal.record(each, **(first if not number else {}))
        journal.close()
        return journal.path

    return trio.run(write)


def phase_in(path: Path) -> str:
    """The last phase in that journal."""
    state = read_journal(path)
    assert state is not None
    return state.phase


@dataclass(slots=True)
class Daemon:
    """A pageferryd on this host."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _logged_before: int = 0

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self, *, faults: str = "", guests: Mapping[str, Path] | None = None) -> None:
        self.folder.mkdir(exist_ok=True)
        named = "".join(f'[guests.{name}]\nqmp = "{qmp}"\n' for name, qmp in (guests or {}).items())
        config = self.folder / "pageferryd.toml"
        config.write_text(
            f'[daemon]\ncontrol-socket = "{self.folder}/control.sock"\n'
            f'state-directory = "{self.state_dir}"\nlisten = "127.0.0.1:{self.port}"\n{named}'
        )
        with (self.folder / "log").open("ab") as log:
            self._logged_before = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pageferry.daemon.main", "--config", str(config)],
                stderr=log,
                env={**os.environ, FAULTS_VARIABLE: faults, ENABLE_VARIABLE: ENABLED},
            )

    def wait_ready(self) -> None:
        """It listens, and has looked what is left over."""
        log = self.folder / "log"
        eventually(
            lambda: b"listening on" in log.read_bytes()[self._logged_before :], "the daemon is up"
        )

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            (self.folder / "control.sock").unlink(missing_ok=True)
            self.process = None

    def recover(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`pageferry recover` with these arguments."""
        self.wait_ready()
        return subprocess.run(
            [sys.executable, "-m", "pageferry.cli.main", "recover", *arguments],
            env={**os.environ, "PAGEFERRY_SOCKET": str(self.folder / "control.sock")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def recovered(self, *arguments: str) -> list[dict[str, Any]]:
        """The same with --json."""
        done = self.recover("--json", *arguments)
        told: list[dict[str, Any]] = json.loads(done.stdout)
        return told


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[Daemon]:
    """A daemon that is not started yet; ended at the end of the block."""
    made = Daemon(folder, free_port())
    try:
        yield made
    finally:
        made.end()


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the journal as a living worker does."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
