"""A pageferryd in the test's own process, with fake workers and fake hooks."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from pageferry.daemon.config import Config
from pageferry.daemon.hooks import Hooks
from pageferry.daemon.main import run_daemon
from pageferry.daemon.supervisor import Supervisor
from pageferry.model.gone import DestinationGone
from pageferry.model.residency import ResidencyBytes
from pageferry.model.verdict import Check, Room, Verdict
from pageferry.net.address import Address

WORKER = str(Path(__file__).with_name("fake_worker.py"))


@dataclass(slots=True)
class FakeHooks:
    """What the hooks were asked, and what they answer."""

    settled: list[str] = field(default_factory=list)
    planned: list[str] = field(default_factory=list)
    words: list[DestinationGone | None] = field(default_factory=list)
    asked_guest: str = "web"
    answer: list[dict[str, Any]] = field(default_factory=list)
    estimated: list[dict[str, Any]] = field(default_factory=list)
    converges: bool = True
    phase: str = "aborted"
    phase_once_settled: str = ""
    verdict: Verdict = Verdict.OK
    sides: list[str | None] = field(default_factory=list)
    room: Room = field(default_factory=lambda: Room(1 << 30, 4 << 20, 1 << 30))
    looked_at: list[tuple[Path, int | None]] = field(default_factory=list)

    async def settle(
        self, _state_dir: Path, migration_id: str, word: DestinationGone | None = None
    ) -> list[dict[str, Any]]:
        self.words.append(word)
        self.settled.append(migration_id)
        self.phase = self.phase_once_settled or self.phase
        return [{"migration-id": migration_id, **each} for each in self.answer]

    async def plan(
        self, _state_dir: Path, migration_id: str, word: DestinationGone | None = None
    ) -> list[dict[str, Any]]:
        self.planned.append(migration_id)
        return [
            {"migration-id": migration_id, **each, "settled": False, "plan": "what follows"}
            for each in self.answer
        ]

    def journalled_phase(self, _state_dir: Path, migration_id: str) -> tuple[str, str, str]:
        return self.phase, f"asked for {migration_id}", self.asked_guest

    async def residency(self, qmp: Path, cells: int | None) -> dict[str, Any]:
        self.looked_at.append((qmp, cells))
        counts = {"resident-bytes": 4096, "swapped-bytes": 8192, "hole-bytes": 0}
        block: dict[str, Any] = {"name": "mem0", **counts}
        if cells is not None:
            block |= {"cell-bytes": 4096, "resident-map": [0, 1, 0], "swapped-map": [1, 0, 1]}
        return {"way": "cachestat", "total": counts, "blocks": [block]}

    async def check_host(self) -> list[Check]:
        return [
            Check("kernel", "pagemap-scan", self.verdict, "PAGEMAP_SCAN", "boot another kernel"),
            Check("host", "swap", Verdict.DEGRADED, "no swap is on", "switch swap on"),
        ]

    async def check_guest(self, name: str, qmp: Path, side: str | None) -> list[Check]:
        self.sides.append(side)
        ram = ResidencyBytes(resident_bytes=12 << 20, swapped_bytes=5 << 20)
        return [Check("guest", "ram", Verdict.OK, f"12 MiB at {qmp}", "", name, ram=ram)]

    async def estimate(self, request: dict[str, Any]) -> dict[str, Any]:
        self.estimated.append(request)
        return {
            "transfer-bytes": 1 << 30,
            "page-in-bytes": 640 << 20,
            "total-time": 6000,
            "rounds": 3,
            "dirty-bytes-per-second": 64 << 20,
            "expected-downtime": 31,
            "converges": self.converges,
            "residency": {"resident-bytes": 1, "swapped-bytes": 2, "hole-bytes": 3},
            "sample-time": request["sample-time"],
            "bandwidth": request["bandwidth"] or 1 << 30,
            "bandwidth-assumed": not request["bandwidth"],
            "swap-bandwidth": 1 << 27,
            "swap-bandwidth-assumed": True,
        }

    def hooks(self) -> Hooks:
        return Hooks(
            settle=self.settle,
            journalled_phase=self.journalled_phase,
            residency=self.residency,
            check_host=self.check_host,
            check_guest=self.check_guest,
            room=lambda: self.room,
            plan=self.plan,
            estimate=self.estimate,
        )


@dataclass(slots=True)
class DaemonBench:
    """A running daemon."""

    config: Config
    supervisor: Supervisor
    hooks: FakeHooks
    record: Path
    sockets: list[socket.socket] = field(default_factory=list)

    def config_of(self, certificates: Path, **settings: Any) -> Config:
        """The configuration of another host that has these certificates, and uses them."""
        return Config(tls_directory=certificates, tls_loopback=True, **settings)

    def guest(self, name: str) -> Path:
        """Make a QMP socket for a guest of that name."""
        path = self.config.control_socket.parent / f"{name}.qmp"
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(os.fspath(path))
        self.sockets.append(sock)
        return path

    def packets(self) -> list[dict[str, Any]]:
        """All packets that workers were sent."""
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    async def packet(self, kind: str) -> dict[str, Any]:
        """Wait for a packet of that type to have reached a worker."""

        async def is_there() -> bool:
            return any(packet["type"] == kind for packet in self.packets())

        await eventually(is_there)
        return next(packet for packet in self.packets() if packet["type"] == kind)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until *condition* holds, in another process or behind a socket where no event tells."""
    with trio.fail_after(20):
        while not await condition():  # noqa: ASYNC110 - there is nothing to wait for
            await trio.sleep(0.02)


def free_port() -> int:
    """A TCP port that nobody listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def config_in(directory: Path, **changes: Any) -> Config:
    """A configuration whose paths all lie in *directory*."""
    return replace(
        Config(
            control_socket=directory / "control.sock",
            listen=Address("127.0.0.1", free_port()),
            state_directory=directory / "state",
            guest_sockets=str(directory / "{name}.qmp"),
        ),
        **changes,
    )


@asynccontextmanager
async def running_daemon(directory: Path, **changes: Any) -> AsyncIterator[DaemonBench]:
    """A daemon until the end of the block, where it is stopped by SIGTERM as systemd does."""
    config = config_in(directory, **changes)
    config.state_directory.mkdir(exist_ok=True)
    fake, record = FakeHooks(), directory / "packets"
    command = (sys.executable, WORKER, "--record", str(record))
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[Supervisor]) -> None:
            await run_daemon(
                config, hooks=fake.hooks(), worker_command=command, task_status=task_status
            )

        supervisor = await nursery.start(run)
        bench = DaemonBench(config, supervisor, fake, record)
        try:
            yield bench
        except Exception as error:  # noqa: BLE001 - carried out of the nursery, unwrapped
            failure = error
        os.kill(os.getpid(), signal.SIGTERM)
        for sock in bench.sockets:
            sock.close()
    if failure is not None:
        raise failure
