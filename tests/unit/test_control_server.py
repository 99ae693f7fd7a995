"""The control socket: as QEMU's tools see it, and as misbehaving clients find it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from qemu.qmp import ExecuteError, QMPClient

from pageferry.control.client import DaemonUnreachableError, open_client
from pageferry.control.errors import DEVICE_NOT_FOUND, CommandError
from pageferry.control.registry import Declaration, Peer, Registry
from pageferry.control.schema import BOOL, SIZE, STR, EventType, Member
from pageferry.control.server import EVENT_BACKLOG, ControlServer, bind_control_socket
from pageferry.model.errors import RefusedError


class Calls:
    """Commands for the tests, and what reached them."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.peers: list[Peer] = []
        self.gate = trio.Event()

    async def echo(self, arguments: dict[str, Any], peer: Peer) -> dict[str, Any]:
        self.seen.append(arguments)
        self.peers.append(peer)
        return arguments

    async def fail(self, arguments: dict[str, Any], _peer: Peer) -> None:
        raise {
            "refused": RefusedError("no such RAM", advice="use other RAM"),
            "absent": CommandError("no guest", DEVICE_NOT_FOUND),
            "bug": ZeroDivisionError("oops"),
        }[arguments["how"]]

    async def wait(self, _arguments: dict[str, Any], _peer: Peer) -> None:
        await self.gate.wait()

    def registry(self) -> Registry:
        registry = Registry(events=(EventType("MIGRATION", (Member("status", STR),)),))
        echo = (
            Member("text", STR),
            Member("size", SIZE, optional=True),
            Member("flag", BOOL, optional=True),
        )
        registry.add(Declaration("echo", "", echo), self.echo)
        registry.add(Declaration("query-echo", "", echo), self.echo)
        registry.add(Declaration("fail", "", (Member("how", STR),)), self.fail)
        registry.add(Declaration("wait", ""), self.wait)
        return registry


class Bench:
    def __init__(self, path: Path, server: ControlServer, calls: Calls) -> None:
        self.path = path
        self.server = server
        self.calls = calls
        self.streams: list[trio.SocketStream] = []

    async def connect(self) -> RawClient:
        self.streams.append(await trio.open_unix_socket(os.fspath(self.path)))
        return RawClient(self.streams[-1])


class RawClient:
    """Sees every byte, and may send any."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def line(self) -> dict[str, Any]:
        with trio.fail_after(5):
            while b"\n" not in self.buffer:
                data = await self.stream.receive_some()
                if not data:
                    raise EOFError
                self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        value = json.loads(line)
        assert isinstance(value, dict)
        return value

    async def ask(self, request: bytes | dict[str, Any]) -> dict[str, Any]:
        if isinstance(request, dict):
            request = json.dumps(request).encode()
        await self.stream.send_all(request)
        return await self.line()

    async def negotiate(self) -> RawClient:
        await self.line()
        assert await self.ask({"execute": "qmp_capabilities"}) == {"return": {}}
        return self


@asynccontextmanager
async def serving(
    tmp_path: Path, may_change: Callable[[Peer], bool] = lambda _peer: True
) -> AsyncIterator[Bench]:
    calls = Calls()
    server = ControlServer(calls.registry(), may_change=may_change, clock_ns=lambda: 12_000_034_000)
    path = tmp_path / "run" / "control.sock"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, bind_control_socket(path))
        bench = Bench(path, server, calls)
        yield bench
        for stream in bench.streams:
            await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def test_greeting_negotiation_and_id(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        client = await bench.connect()
        greeting = await client.line()
        assert set(greeting["QMP"]["version"]["qemu"]) == {"major", "minor", "micro"}
        early = await client.ask({"execute": "query-version", "id": [1, {"x": None}]})
        assert early["error"]["class"] == "CommandNotFound"
        assert early["id"] == [1, {"x": None}]
        assert await client.ask({"execute": "qmp_capabilities", "id": "a"}) == {
            "return": {},
            "id": "a",
        }
        again = await client.ask({"execute": "qmp_capabilities"})
        assert again["error"]["class"] == "CommandNotFound"
        assert "id" not in again


async def test_unknown_capability_is_refused_and_negotiation_stays_open(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        client = await bench.connect()
        await client.line()
        request = {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}
        assert (await client.ask(request))["error"]["class"] == "GenericError"
        assert (await client.ask({"execute": "qmp_capabilities"})) == {"return": {}}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "text"),
        ({"text": 1}, "text"),
        ({"text": "a", "size": -1}, "size"),
        ({"text": "a", "size": True}, "size"),
        ({"text": "a", "size": 1 << 63}, "size"),
        ({"text": "a", "flag": 1}, "flag"),
        ({"text": "a", "other": 1}, "other"),
    ],
)
async def test_wrong_arguments_have_no_effect(
    tmp_path: Path, arguments: dict[str, Any], named: str
) -> None:
    async with serving(tmp_path) as bench:
        client = await (await bench.connect()).negotiate()
        reply = await client.ask({"execute": "echo", "arguments": arguments})
        assert reply["error"]["class"] == "GenericError"
        assert f"'{named}'" in reply["error"]["desc"]
        assert bench.calls.seen == []


@pytest.mark.parametrize(
    "text",
    [
        b"hello there\n",
        b'{"execute": }',
        b"[]",
        b"{}",
        b'{"execute": 3}',
        b'{"execute": "echo", "arguments": []}',
        b'{"execute": "echo", "arguments": {"text": "a"}, "extra": 1}',
        b'{"execute": "echo", "execute": "echo"}',
    ],
)
async def test_malformed_input_is_answered_and_harms_nobody(tmp_path: Path, text: bytes) -> None:
    async with serving(tmp_path) as bench:
        other = await (await bench.connect()).negotiate()
        client = await (await bench.connect()).negotiate()
        assert (await client.ask(text))["error"]["class"] == "GenericError"
        for each in (client, other):
            reply = await each.ask({"execute": "echo", "arguments": {"text": "on"}})
            assert reply == {"return": {"text": "on"}}


async def test_client_that_sends_without_end_is_closed_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        other = await (await bench.connect()).negotiate()
        client = await (await bench.connect()).negotiate()
        with contextlib.suppress(trio.BrokenResourceError):
            await client.stream.send_all(b'{"execute": "' + b"x" * (2 << 20))
        with pytest.raises((trio.BrokenResourceError, EOFError)):
            await _read_to_the_end(client)
        assert "return" in await other.ask({"execute": "query-version"})


async def test_error_classes_and_reports(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        client = await (await bench.connect()).negotiate()
        unknown = await client.ask({"execute": "frob"})
        assert unknown["error"]["class"] == "CommandNotFound"
        refused = await client.ask({"execute": "fail", "arguments": {"how": "refused"}})
        assert refused["error"]["class"] == "GenericError"
        assert refused["error"]["report"]["advice"] == "use other RAM"
        absent = await client.ask({"execute": "fail", "arguments": {"how": "absent"}})
        assert absent["error"] == {"class": "DeviceNotFound", "desc": "no guest"}
        bug = await client.ask({"execute": "fail", "arguments": {"how": "bug"}})
        assert "oops" not in bug["error"]["desc"]
        assert "return" in await client.ask({"execute": "query-version"})


async def test_events_reach_all_who_negotiated_and_only_them(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        clients = [await (await bench.connect()).negotiate() for _ in range(3)]
        silent = await bench.connect()
        await silent.line()
        bench.server.emit("MIGRATION", {"status": "active"})
        for client in clients:
            assert await client.line() == {
                "event": "MIGRATION",
                "data": {"status": "active"},
                "timestamp": {"seconds": 12, "microseconds": 34},
            }
        assert "return" in await silent.ask({"execute": "qmp_capabilities"})


async def test_client_that_never_reads_is_dropped_and_holds_up_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        deaf = await (await bench.connect()).negotiate()
        other = await (await bench.connect()).negotiate()
        for number in range(EVENT_BACKLOG * 4):
            bench.server.emit("MIGRATION", {"number": number, "padding": "x" * 1000})
            assert (await other.line())["data"]["number"] == number
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await _read_to_the_end(deaf)


async def test_client_that_leaves_without_reading_harms_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        other = await (await bench.connect()).negotiate()
        for how in ("unread answer", "unread event", "half a command", "command under way"):
            client = await (await bench.connect()).negotiate()
            if how == "unread answer":
                await client.stream.send_all(b'{"execute": "query-version"}')
            elif how == "half a command":
                await client.stream.send_all(b'{"execute": "query-ver')
            elif how == "command under way":
                await client.stream.send_all(b'{"execute": "wait"}')
            bench.server.emit("MIGRATION", {"status": "active"})
            assert (await other.line())["event"] == "MIGRATION"
            await trio.testing.wait_all_tasks_blocked()
            await trio.aclose_forcefully(client.stream)
            await trio.testing.wait_all_tasks_blocked()
            bench.server.emit("MIGRATION", {"status": "completed"})
            assert (await other.line())["data"] == {"status": "completed"}
        bench.calls.gate.set()
        assert "return" in await other.ask({"execute": "query-version"})


async def _read_to_the_end(client: RawClient) -> None:
    while True:
        await client.line()


async def test_slow_command_of_one_client_does_not_hold_up_another(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        slow = await (await bench.connect()).negotiate()
        await slow.stream.send_all(b'{"execute": "wait", "id": 1}{"execute": "query-version"}')
        other = await (await bench.connect()).negotiate()
        assert "return" in await other.ask({"execute": "query-version"})
        bench.calls.gate.set()
        assert await slow.line() == {"return": {}, "id": 1}
        assert "qemu" in (await slow.line())["return"]


async def test_peer_is_known_and_socket_is_private(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        client = await (await bench.connect()).negotiate()
        await client.ask({"execute": "echo", "arguments": {"text": "a"}})
        groups = frozenset(os.getgroups())
        assert bench.calls.peers == [Peer(os.getpid(), os.getuid(), os.getgid(), groups)]
        assert stat.S_IMODE(bench.path.stat().st_mode) == 0o600


async def test_client_that_may_only_read_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda _peer: False) as bench:
        client = await (await bench.connect()).negotiate()
        denied = await client.ask({"execute": "echo", "arguments": {"text": "a"}, "id": 7})
        assert denied["id"] == 7
        assert denied["error"]["class"] == "GenericError"
        assert "may only read" in denied["error"]["desc"]
        assert denied["error"]["report"]["kind"] == "denied"
        assert bench.calls.seen == []
        asked = {"execute": "query-echo", "arguments": {"text": "a"}}
        assert await client.ask(asked) == {"return": {"text": "a"}}
        assert (await client.ask({"execute": "frob"}))["error"]["class"] == "CommandNotFound"
        bench.server.emit("MIGRATION", {"status": "active"})
        assert (await client.line())["event"] == "MIGRATION"


def test_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    first = bind_control_socket(path)
    with pytest.raises(RefusedError, match="already listens"):
        bind_control_socket(path)
    first.close()
    bind_control_socket(path).close()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(RefusedError, match="not a socket"):
        bind_control_socket(path)
    assert path.read_text() == "precious"


async def test_qemu_qmp_client_conforms(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:

        async def talk() -> None:
            qmp = QMPClient("test")
            await qmp.connect(os.fspath(bench.path))
            try:
                version: Any = await qmp.execute("query-version")
                assert "qemu" in version
                commands: Any = await qmp.execute("query-commands")
                names = {entry["name"] for entry in commands}
                assert {"echo", "qmp_capabilities", "query-commands"} <= names
                with pytest.raises(ExecuteError) as caught:
                    await qmp.execute("fail", {"how": "absent"})
                assert caught.value.error_class == "DeviceNotFound"
                with qmp.listener("MIGRATION") as listener:
                    trio.from_thread.run_sync(bench.server.emit, "MIGRATION", {"status": "setup"})
                    event = await asyncio.wait_for(listener.get(), 5)
                assert event["data"] == {"status": "setup"}
                assert event["timestamp"] == {"seconds": 12, "microseconds": 34}
            finally:
                await qmp.disconnect()

        def run() -> None:
            # trio-asyncio makes asyncio.run start its own kind of loop, also in this thread.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(talk())

        await trio.to_thread.run_sync(run)


async def test_own_client_runs_commands_at_once_and_hears_events(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench, open_client(bench.path) as client:
        assert client.version["qemu"]["major"] == 0
        with client.events() as events:
            bench.server.emit("MIGRATION", {"status": "setup"})
            assert (await events.receive()).data == {"status": "setup"}
        with pytest.raises(CommandError) as caught:
            await client.execute("fail", {"how": "refused"})
        assert caught.value.report["kind"] == "refused"
        assert await client.execute("echo", {"text": "x", "size": None}) == {"text": "x"}


async def test_own_client_tells_when_the_daemon_goes_away(tmp_path: Path) -> None:
    calls = Calls()
    path = tmp_path / "c.sock"
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        sock = bind_control_socket(path)
        nursery.start_soon(_serve_within, scope, ControlServer(calls.registry()), sock)
        async with open_client(path) as client:
            with client.events() as events:
                nursery.start_soon(_cancel_soon, scope)
                with pytest.raises(DaemonUnreachableError):
                    await client.execute("wait")
                with pytest.raises(trio.EndOfChannel):
                    await events.receive()
            with pytest.raises(DaemonUnreachableError):
                await client.execute("query-version")


async def _serve_within(
    scope: trio.CancelScope, server: ControlServer, sock: socket.socket
) -> None:
    with scope:
        await server.serve(sock)


async def _cancel_soon(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked(0.05)
    scope.cancel()


async def test_own_client_names_the_socket_that_nobody_serves(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachableError, match=r"none\.sock"):
        async with open_client(tmp_path / "none.sock"):
            pass


async def test_own_client_gives_up_on_a_silent_listener(tmp_path: Path) -> None:
    sock = bind_control_socket(tmp_path / "c.sock")
    with pytest.raises(DaemonUnreachableError, match="does not answer"):
        async with open_client(tmp_path / "c.sock", timeout_s=0.1):
            pass
    sock.close()
