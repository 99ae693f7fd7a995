"""Two pageferryd on one host, as if on two: each with its own configuration, sockets and state."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pageferry.migration.worker import AT_WORK
from pageferry.testing.lab.cleanup import LabError, undone_by
from pageferry.testing.lab.patience import patient
from pageferry.testing.lab.programs import end

START_TIMEOUT_S = patient(20.0)
STOP_TIMEOUT_S = patient(20.0)
"""A daemon that is told to end cancels its migrations first."""

MIGRATE_TIMEOUT_S = 300.0

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Network:
    """Where the two hosts are: the destination's address, and commands that start programs on
    either (``nsenter --net=...``).
    """

    destination_host: str = LOOPBACK
    source_prefix: tuple[str, ...] = ()
    destination_prefix: tuple[str, ...] = ()


ONE_HOST = Network()


@dataclass(slots=True)
class LabDaemon:
    """One running pageferryd."""

    name: str
    folder: Path
    port: int
    command: Sequence[str] = field(repr=False)
    host: str = LOOPBACK
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Added to what it inherits."""
    process: subprocess.Popen[bytes] = field(init=False, repr=False)

    def start(self) -> None:
        """Start it, also anew after its end, with the same files and port. LabError with its log
        when it does not start."""
        with (self.folder / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
            )
        try:
            _wait_for_control_socket(self)
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """End it by SIGKILL, its workers not."""
        self.process.kill()
        self.process.wait()

    @property
    def control_socket(self) -> Path:
        """Its control socket."""
        return self.folder / "control.sock"

    @property
    def state_directory(self) -> Path:
        """Where its journal is."""
        return self.folder / "state"

    @property
    def address(self) -> str:
        """What another agent connects to."""
        return f"{self.host}:{self.port}"

    def log(self) -> str:
        """What it and its workers logged."""
        return (self.folder / "daemon.log").read_text(errors="replace")

    def workers(self) -> list[int]:
        """Its worker processes that have a migration now."""
        return worker_pids(self.process.pid)

    def stop(self) -> None:
        """End it in order; by force when that takes too long. Does nothing when it has ended."""
        end(self.process, STOP_TIMEOUT_S)

    def cli(self, *arguments: str) -> list[str]:
        """The command line of a pageferry verb spoken to this daemon."""
        verb, *rest = arguments
        socket_option = ("--socket", str(self.control_socket))
        return [sys.executable, "-P", "-m", "pageferry.cli.main", verb, *socket_option, *rest]

    def run_cli(
        self, *arguments: str, timeout_s: float = MIGRATE_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end, whatever its exit status."""
        return subprocess.run(
            self.cli(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def migrate(self, guest: str, destination: LabDaemon, *options: str) -> MigrateResult:
        """``pageferry migrate --json`` from this daemon to the other."""
        done = self.run_cli("migrate", guest, destination.address, "--json", *options)
        lines = []
        for line in done.stdout.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
        return MigrateResult(done.returncode, lines, done.stderr)


def worker_pids(daemon_pid: int) -> list[int]:
    """The worker processes of a daemon that have a migration: its spare is not among them."""
    # A child belongs to the thread that started it, which need not be the main one.
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{daemon_pid}/task").iterdir():
            found += [int(pid) for pid in (thread / "children").read_text().split()]
    return [pid for pid in found if _name_of(pid) == AT_WORK]


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class MigrateResult:
    """How ``pageferry migrate --json`` ended: its exit status, its lines, and what else it said."""

    status: int
    lines: list[dict[str, Any]]
    errors: str

    @property
    def final_info(self) -> dict[str, Any]:
        """The migration's last state, as query-migrate has it; empty when there is none."""
        info = self._finished.get("info")
        return info if isinstance(info, dict) else {}

    @property
    def error(self) -> dict[str, Any]:
        """Why it did not complete: kind, message, guest-state, advice; empty when it did."""
        error = self._finished.get("error")
        return error if isinstance(error, dict) else {}

    @property
    def reason(self) -> str:
        """Why it did not complete, in one line."""
        return str(self.error.get("message") or self.errors.strip())

    @property
    def _finished(self) -> dict[str, Any]:
        last = self.lines[-1] if self.lines else {}
        return last if last.get("event") == "finished" else {}


@contextlib.contextmanager
def run_daemon(
    name: str,
    folder: Path,
    guests: Mapping[str, Path],
    *,
    defaults: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    host: str = LOOPBACK,
    settings: str = "",
) -> Iterator[LabDaemon]:
    """A pageferryd that knows `guests` (name: QMP socket), listening on a free port of `host`.

    Its files are in `folder`, made here. `prefix` is a command that starts it (``setpriv …``), and
    `settings` is what else its configuration says: keys of [daemon], then tables. LabError with its
    log when it does not start.
    """
    folder.mkdir()
    port = _free_port()
    configuration = folder / "pageferryd.toml"
    configuration.write_text(
        _configuration(folder, f"{host}:{port}", guests, defaults or {}, settings)
    )
    program = (sys.executable, "-P", "-m", "pageferry.daemon.main", "--config", str(configuration))
    daemon = LabDaemon(name, folder, port, (*prefix, *program), host, environment or {})
    daemon.start()
    with undone_by(daemon.stop):
        yield daemon


@contextlib.contextmanager
def run_daemon_pair(
    folder: Path,
    source_guests: Mapping[str, Path],
    destination_guests: Mapping[str, Path],
    *,
    defaults: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    network: Network = ONE_HOST,
) -> Iterator[tuple[LabDaemon, LabDaemon]]:
    """The source's daemon and the destination's. `environment` is added to what both inherit."""
    # Beyond loopback a source, too, must be told that it may talk without TLS; QEMU, which the pair
    # is compared with, does not encrypt either.
    settings = "" if network.destination_host == LOOPBACK else "plaintext = true"
    start = functools.partial(
        run_daemon, defaults=defaults, environment=environment, settings=settings
    )
    with (
        start("source", folder / "a", source_guests, prefix=network.source_prefix) as source,
        start(
            "destination",
            folder / "b",
            destination_guests,
            prefix=network.destination_prefix,
            host=network.destination_host,
        ) as other,
    ):
        yield source, other


def _configuration(
    folder: Path,
    listen: str,
    guests: Mapping[str, Path],
    defaults: Mapping[str, object],
    settings: str,
) -> str:
    # JSON's strings, numbers and truth values are TOML's too.
    lines = [
        "[daemon]",
        f"control-socket = {json.dumps(str(folder / 'control.sock'))}",
        f"state-directory = {json.dumps(str(folder / 'state'))}",
        f"listen = {json.dumps(listen)}",
        settings or ("" if listen.startswith(LOOPBACK) else "plaintext = true"),
        "[defaults]",
        *(f"{key} = {json.dumps(value)}" for key, value in defaults.items()),
    ]
    for name, qmp in guests.items():
        lines += [f"[guests.{json.dumps(name)}]", f"qmp = {json.dumps(str(qmp))}"]
    return "\n".join(lines) + "\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_control_socket(daemon: LabDaemon) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        if daemon.process.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"pageferryd ({daemon.name}) did not start: {daemon.log().strip()}")
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(daemon.control_socket))
            return
        time.sleep(0.02)
