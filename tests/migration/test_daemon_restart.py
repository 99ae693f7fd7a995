"""A real migration whose daemons are restarted and killed while it runs: it does not notice."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pageferry.control.info import MigrationInfo
from pageferry.control.sync_client import connect
from pageferry.testing.lab.guests import GuestPlan
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.settled import settled_pair
from pageferry.testing.lab.swap import SwapArea
from tests.support.daemon_bench import free_port
from tests.support.service_manager import FakeServiceManager, service_manager

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu, pytest.mark.slow]


@dataclass(slots=True)
class Host:
    """One host's pageferryd under its service manager."""

    folder: Path
    port: int
    manager: FakeServiceManager
    process: subprocess.Popen[bytes] | None = None

    @property
    def control_socket(self) -> Path:
        return self.folder / "control.sock"

    def start(self) -> None:
        arguments = ["-m", "pageferry.daemon.main", "--config", str(self.folder / "c.toml")]
        with (self.folder / "log").open("ab") as log:
            self.process = self.manager.start(arguments, log=log.fileno())

    def restart(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        assert self.process.wait(20) in (0, -number)
        self.start()

    def info(self, migration_id: str) -> MigrationInfo:
        with connect(self.control_socket) as client:
            return client.query_migrate(migration_id=migration_id)

    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextlib.contextmanager
def host(folder: Path, qmp: Path) -> Iterator[Host]:
    folder.mkdir()
    port = free_port()
    (folder / "c.toml").write_text(
        "[daemon]\n"
        f'control-socket = "{folder / "control.sock"}"\n'
        f'state-directory = "{folder / "state"}"\n'
        f'listen = "127.0.0.1:{port}"\n'
        f'[guests.web]\nqmp = "{qmp}"\n'
    )
    with service_manager(folder) as manager:
        made = Host(folder, port, manager)
        made.start()
        yield made


def wait_rounds(one: Host, migration_id: str, rounds: int) -> None:
    deadline = time.monotonic() + 90
    while (info := one.info(migration_id)).rounds < rounds:
        assert not info.is_final, (info.error, one.log())
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_migration_goes_on_over_restarts_and_a_crash(
    newest_qemu: QemuBinary, host_swap: SwapArea, tmp_path: Path
) -> None:
    plan = GuestPlan(newest_qemu, pace=0, limit_mib=72)
    with settled_pair(plan) as guest:
        assert guest.destination is not None
        with (
            host(guest.folder / "a", guest.source.qmp_path) as source,
            host(guest.folder / "b", guest.destination.qmp_path) as destination,
        ):
            with connect(source.control_socket) as client:
                # It does not converge, so that it lasts as long as we like.
                parameters = {"downtime-limit": 1, "max-rounds": 10_000}
                uri = f"127.0.0.1:{destination.port}"
                migration_id = client.migrate("web", uri, parameters=parameters)
            watching = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pageferry.cli.main", "watch", "web", "--json"),
                    *("--socket", str(source.control_socket)),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            wait_rounds(source, migration_id, 4)
            source.restart(signal.SIGTERM)
            wait_rounds(source, migration_id, 8)
            destination.restart(signal.SIGKILL)
            source.restart(signal.SIGKILL)
            wait_rounds(source, migration_id, 14)
            destination.restart(signal.SIGTERM)
            assert not destination.info(migration_id).is_final
            with connect(source.control_socket) as client:
                assert client.parameters(migration_id=migration_id)["downtime-limit"] == 1
                client.set_parameters(
                    {"downtime-limit": 2000, "verify": True}, migration_id=migration_id
                )
                last = client.wait(migration_id)
            assert last.status == "completed", (last.error, source.log(), destination.log())
            assert last.verified is True
            lines = [json.loads(line) for line in watching.communicate(timeout=20)[0].splitlines()]
            assert watching.returncode == 0, lines[-1]
            assert any(line["event"] == "note" for line in lines)  # it saw daemons go
            assert lines[-1]["info"]["verified"] is True
            with connect(destination.control_socket) as client:
                assert client.wait(migration_id).status == "completed"
                assert [each.role for each in client.history()] == ["destination"]
            for each in (source, destination):
                each.manager.wait(lambda each=each: not each.manager.kept)  # type: ignore[misc]
            assert guest.verify().bad == 0
