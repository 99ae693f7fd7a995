"""The daemon under a service manager: readiness, watchdog, sockets, restarts, reloads."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pageferry.control.client import DaemonUnreachableError
from pageferry.control.errors import CommandError
from pageferry.control.info import MigrationInfo
from pageferry.control.sync_client import SyncClient, connect
from pageferry.daemon.systemd import ServiceManager
from tests.support.daemon_bench import free_port
from tests.support.service_manager import FakeServiceManager, service_manager

ROOT = Path(__file__).parents[2]
TARGET = "127.0.0.1:49499"


@dataclass(slots=True)
class Unit:
    """The daemon's unit: what is the same for all its processes."""

    folder: Path
    manager: FakeServiceManager

    @property
    def config(self) -> Path:
        return self.folder / "pageferryd.toml"

    @property
    def control_socket(self) -> Path:
        return self.folder / "control.sock"

    @property
    def record(self) -> Path:
        return self.folder / "packets"

    def write_config(self, port: int, more: str = "") -> None:
        self.config.write_text(
            "[daemon]\n"
            f'control-socket = "{self.control_socket}"\n'
            f'state-directory = "{self.folder / "state"}"\n'
            f'listen = "127.0.0.1:{port}"\n'
            f'guest-sockets = "{self.folder}/{{name}}.qmp"\n{more}'
        )

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return self.manager.start(
                ["-m", "tests.support.daemon_process", str(self.config), str(self.record)],
                {"PYTHONPATH": str(ROOT)},
                log.fileno(),
            )

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def workers(self) -> set[int]:
        """The processes that were sent packets."""
        if not self.record.exists():
            return set()
        lines = self.record.read_text().splitlines()
        return {json.loads(line)["worker"]["pid"] for line in lines}

    def client(self) -> contextlib.AbstractContextManager[SyncClient]:
        return connect(self.control_socket)


@contextlib.contextmanager
def unit(tmp_path: Path, *, keeps: bool = True, watchdog_s: float | None = None) -> Iterator[Unit]:
    """A unit with guests ``slow``, ``committed`` and ``web``; everything has ended at the end."""
    guests = []
    for name in ("slow", "slow-2", "committed", "web"):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(os.fspath(tmp_path / f"{name}.qmp"))
        guests.append(sock)
    with service_manager(tmp_path, keeps=keeps, watchdog_s=watchdog_s) as manager:
        made = Unit(tmp_path, manager)
        made.write_config(free_port())
        yield made
    for sock in guests:
        sock.close()
    for pid in made.workers():  # the store is empty now: they see the end of the link
        wait_gone(pid)


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    process.send_signal(number)
    assert process.wait(20) in (0, -number)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < deadline, f"{pid} lives on"
        time.sleep(0.02)


def wait_phase(client: SyncClient, migration_id: str, phase: str) -> MigrationInfo:
    deadline = time.monotonic() + 20
    while (info := client.query_migrate(migration_id=migration_id)).phase != phase:
        assert time.monotonic() < deadline, info
        time.sleep(0.02)
    return info


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_restart_and_crash_leave_a_running_migration_alone(tmp_path: Path, how: int) -> None:
    with unit(tmp_path) as made:
        first = made.start()
        with made.client() as client:
            migration_id = client.migrate("slow", TARGET, parameters={"channels": 3})
            wait_phase(client, migration_id, "resident")
            client.set_parameters({"downtime-limit": 77}, migration_id=migration_id)
        (worker,) = made.workers()
        assert list(made.manager.kept) == [f"worker.source.{migration_id}"]
        stop(first, how)
        assert is_alive(worker)
        second = made.start()
        with made.client() as client:
            (info,) = client.query_migrations()
            assert (info.migration_id, info.guest, info.role) == (migration_id, "slow", "source")
            assert info.destination == TARGET
            assert not info.is_final
            assert client.parameters(migration_id=migration_id)["channels"] == 3
            with pytest.raises(CommandError, match="in a migration already"):
                client.migrate("slow", TARGET)
            with client.events() as events:
                client.cancel(migration_id=migration_id)
                told = next(e for e in events if e.data.get("status") == "cancelled")
            assert told.data["guest"] == "slow"
            info = client.query_migrate(migration_id=migration_id)
            assert (info.status, info.error["guest-state"]) == ("cancelled", "runs on the source")
            assert [each.status for each in client.history()] == ["cancelled"]
        wait_gone(worker)
        made.manager.wait(lambda: not made.manager.kept)
        stop(second)


def test_end_without_a_daemon_is_told_by_the_next_one(tmp_path: Path) -> None:
    with unit(tmp_path) as made:
        first = made.start()
        with made.client() as client:
            ends = client.migrate("committed", TARGET)
            wait_phase(client, ends, "commit")
            dies = client.migrate("slow", TARGET)
            wait_phase(client, dies, "resident")
        pids = made.workers()
        stop(first)
        # One worker ends in order, the other is killed, while there is no daemon.
        link = socket.socket(fileno=os.dup(made.manager.kept[f"worker.source.{ends}"]))
        with link:
            link.send(json.dumps({"type": "cancel"}).encode())
        by_guest = {
            json.loads(line)["guest"]: json.loads(line)["worker"]["pid"]
            for line in made.record.read_text().splitlines()
            if json.loads(line)["type"] == "job"
        }
        os.kill(by_guest["slow"], signal.SIGKILL)
        for pid in pids:
            wait_gone(pid)
        second = made.start()
        with made.client() as client:
            deadline = time.monotonic() + 20
            while len(client.history()) < 1:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert client.query_migrate(migration_id=ends).status == "completed"
            made.manager.wait(lambda: not made.manager.kept)
        stop(second)


def test_stop_for_good_ends_migrations_since_nobody_holds_their_links(tmp_path: Path) -> None:
    with unit(tmp_path) as made:
        process = made.start()
        with made.client() as client:
            wait_phase(client, client.migrate("slow", TARGET), "resident")
        (worker,) = made.workers()
        stop(process)
        assert made.manager.told("STOPPING=1")
        assert is_alive(worker)
        made.manager.drop_store()
        wait_gone(worker)


def test_unit_without_a_store_loses_migrations_but_no_guest(tmp_path: Path) -> None:
    with unit(tmp_path, keeps=False) as made:
        process = made.start()
        with made.client() as client:
            wait_phase(client, client.migrate("slow", TARGET), "resident")
        (worker,) = made.workers()
        stop(process)
        wait_gone(worker)  # it cancelled by itself


def test_interrupt_cancels_and_waits_also_under_systemd(tmp_path: Path) -> None:
    with unit(tmp_path) as made:
        process = made.start()
        with made.client() as client:
            wait_phase(client, client.migrate("slow", TARGET), "resident")
        (worker,) = made.workers()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert not is_alive(worker)


def test_sockets_of_systemd_are_served_and_left_in_place(tmp_path: Path) -> None:
    with unit(tmp_path) as made:
        control = socket.socket(socket.AF_UNIX)
        control.bind(os.fspath(made.control_socket))
        control.listen()
        agent = socket.create_server(("127.0.0.1", 0))
        made.manager.sockets = [("control", control), ("agent", agent)]
        for _ in range(2):
            process = made.start()
            with made.client() as client:
                assert client.status().access == "full"
            with socket.create_connection(agent.getsockname()) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):  # since it did not read all
                    assert stranger.recv(100) == b""
            stop(process)
            assert made.control_socket.exists()
            # A client that comes while no daemon runs is served by the next one.
        waiting: list[str] = []

        def connect_early() -> None:
            with made.client() as client:
                waiting.append(client.status().access)

        thread = threading.Thread(target=connect_early)
        thread.start()
        process = made.start()
        thread.join()
        assert waiting == ["full"]
        stop(process)


def test_watchdog_is_fed(tmp_path: Path) -> None:
    with unit(tmp_path, watchdog_s=0.2) as made:
        process = made.start()
        made.manager.wait(lambda: sum("WATCHDOG=1" in m for m in made.manager.messages) > 5)
        stop(process)


def test_reload_takes_over_what_it_can_and_says_what_waits(tmp_path: Path) -> None:
    with unit(tmp_path) as made:
        port = free_port()
        made.write_config(port)
        process = made.start()
        made.write_config(port, '[defaults]\nchannels = 7\n[guests.db]\nqmp = "/run/db.qmp"\n')
        reload(made, process)
        with made.client() as client:
            assert client.parameters()["channels"] == 7
            assert "db" in {guest.name for guest in client.query_guests()}
            made.write_config(port, "[defaults]\nchanels = 8\n")
            reload(made, process)
            assert client.parameters()["channels"] == 7
            assert "did you mean channels?" in made.log()
            made.write_config(free_port())
            reload(made, process)
            assert client.parameters()["channels"] == 2
            assert "a restart is needed for listen" in made.log()
        stop(process)


def reload(made: Unit, process: subprocess.Popen[bytes]) -> None:
    before = len(made.manager.messages)
    process.send_signal(signal.SIGHUP)

    def is_done() -> bool:
        new = made.manager.messages[before:]
        at = [n for n, message in enumerate(new) if "RELOADING=1" in message]
        assert all("MONOTONIC_USEC" in new[n][1] for n in at)
        return bool(at) and any("READY=1" in message for message in new[at[0] :])

    made.manager.wait(is_done)


def test_variables_are_for_the_daemon_alone() -> None:
    environment = {
        "NOTIFY_SOCKET": "/x",
        "WATCHDOG_USEC": "1000000",
        "WATCHDOG_PID": "1",
        "LISTEN_FDS": "2",
        "LISTEN_PID": "1",
        "LISTEN_FDNAMES": "a:b",
        "PATH": "/bin",
    }
    manager = ServiceManager.from_environment(environment)
    assert environment == {"PATH": "/bin"}
    assert manager.is_there
    assert manager.watchdog_s is None  # for another process
    assert manager.take("") == []
    with pytest.raises(ValueError, match="a:b"):
        manager.keep("a:b", 0)


def test_without_systemd_nothing_is_said() -> None:
    manager = ServiceManager.from_environment({})
    assert not manager.is_there
    manager.ready("x")
    manager.keep("a", 0)
    manager.barrier()


def test_daemon_that_is_gone_is_told_to_the_plain_client(tmp_path: Path) -> None:
    with unit(tmp_path) as made:
        process = made.start()
        with made.client() as client:
            stop(process, signal.SIGKILL)
            with pytest.raises(DaemonUnreachableError):
                client.status()
        with pytest.raises(DaemonUnreachableError), made.client():
            pass
