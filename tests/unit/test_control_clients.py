"""Both Python clients, against a daemon with fake workers; and the examples of docs/python.md."""

from __future__ import annotations

import inspect
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from pageferry.control import calls
from pageferry.control.client import ControlClient, DaemonUnreachableError, open_client
from pageferry.control.errors import CommandError
from pageferry.control.info import Estimate, MigrationInfo, Residency
from pageferry.control.sync_client import SyncClient, connect
from tests.support.daemon_bench import DaemonBench, running_daemon

TARGET = "127.0.0.1:49499"
DOCUMENT = Path(__file__).parents[2] / "docs" / "python.md"

CALLS = {
    name: function
    for name, function in vars(calls).items()
    if inspect.isfunction(function) and function.__module__ == calls.__name__ and name[0] != "_"
}


async def with_sync_client(bench: DaemonBench, talk: Callable[[SyncClient], None]) -> None:
    def run() -> None:
        with connect(bench.config.control_socket) as client:
            talk(client)

    await trio.to_thread.run_sync(run)


@pytest.mark.parametrize("kind", [ControlClient, SyncClient])
def test_clients_have_every_call_with_its_words(kind: type) -> None:
    for name, function in CALLS.items():
        assert getattr(kind, name).__doc__ == function.__doc__
        assert function.__doc__


async def test_plain_client_gives_typed_results(tmp_path: Path) -> None:
    def talk(client: SyncClient) -> None:
        assert client.version["package"].startswith("pageferry")
        assert client.status().running_migrations == 0
        assert {guest.name for guest in client.query_guests()} == {"web", "slow"}
        found: Residency = client.residency("web", cells=3)
        assert found.blocks[0].swapped_map == (1, 0, 1)
        costs: Estimate = client.estimate("web", sample_s=0.5, bandwidth=1 << 29)
        assert (costs.bandwidth, costs.bandwidth_assumed, costs.sample_s) == (1 << 29, False, 0.5)
        assert {check.section for check in client.doctor(guest="web")} >= {"kernel", "tls"}
        assert client.recover() == []
        assert client.recover(dry_run=True) == []
        client.set_parameters({"channels": 5})
        assert client.parameters()["channels"] == 5
        info: MigrationInfo = client.wait(client.migrate("web", TARGET))
        assert (info.status, info.downtime_ms) == ("completed", 12.5)
        assert client.history(guest="web", limit=1)[0].info == info
        slow = client.migrate("slow", TARGET)
        client.cancel(guest="slow")
        assert client.wait(slow).status == "cancelled"
        with pytest.raises(CommandError, match="is over"):
            client.cancel(migration_id=slow)
        with pytest.raises(CommandError) as caught:
            client.execute("frob")
        assert caught.value.error_class == "CommandNotFound"
        assert client.execute("query-version")["package"] == client.version["package"]
        with pytest.raises(CommandError, match="is no number"):
            client.set_parameters({"timeout": float("nan")})

    async with running_daemon(tmp_path) as bench:
        bench.guest("web")
        bench.guest("slow")
        await with_sync_client(bench, talk)


async def test_plain_client_hears_events_between_commands(tmp_path: Path) -> None:
    def talk(client: SyncClient) -> None:
        with client.events(0.2) as events:
            assert list(events) == []
        with client.events() as events:
            migration_id = client.migrate("web", TARGET)
            seen = []
            for event in events:
                seen.append(event.data.get("status"))
                client.query_migrate(migration_id=migration_id)
                if seen[-1] == "completed":
                    break
        assert [status for status in seen if status] == ["setup", "active", "completed"]

    async with running_daemon(tmp_path) as bench:
        bench.guest("web")
        await with_sync_client(bench, talk)


async def test_trio_client_waits_for_many_at_once(tmp_path: Path) -> None:
    names = [f"web-{number}" for number in range(5)]
    ended: dict[str, str] = {}
    async with running_daemon(tmp_path) as bench:
        for name in names:
            bench.guest(name)
        async with open_client(bench.config.control_socket) as client:

            async def carry(name: str) -> None:
                ended[name] = (await client.wait(await client.migrate(name, TARGET))).status

            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(carry, name)
            assert (await client.status()).running_migrations == 0
            # Sent, it could only be answered without its ID, and the caller would wait for ever.
            with pytest.raises(CommandError, match="is no number"):
                await client.set_parameters({"timeout": float("inf")})
    assert ended == dict.fromkeys(names, "completed")


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "does not speak"),
        (b'{"hello": 1}\r\n', "does not speak"),
        (b'{"QMP": {"version": {"package": "Debian 1:7.2"}, "capabilities": []}}', "a QEMU"),
        (b"", "closed the connection"),
        (None, "does not answer"),
    ],
)
def test_plain_client_names_a_listener_that_is_no_daemon(
    tmp_path: Path, said: bytes | None, named: str
) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        server.listen()

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                if said is None:
                    peer.recv(1)
                elif said:
                    peer.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(DaemonUnreachableError, match=named), connect(path, timeout_s=0.3):
            pass
        thread.join()
    with (
        pytest.raises(DaemonUnreachableError, match=r"none\.sock"),
        connect(tmp_path / "none.sock"),
    ):
        pass


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(examples())))
async def test_examples_of_the_documentation_run(tmp_path: Path, number: int) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("web1")
        address = str(bench.config.control_socket)
        text = examples()[number].replace('"host-b"', repr(TARGET))
        text = re.sub(r"\b(connect|open_client)\(\)", rf"\1(Path({address!r}))", text)
        done: Any = await trio.run_process(
            [sys.executable, "-W", "error", "-c", f"from pathlib import Path\n{text}"],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert done.returncode == 0, done.stdout.decode()
    assert "completed" in done.stdout.decode() or "web1" in done.stdout.decode()
