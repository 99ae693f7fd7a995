"""The port for other agents: who is let in, who is turned away, and what reaches the workers."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import trio

import pageferry.daemon.listener as listener_module
from pageferry.daemon.listener import Listener
from pageferry.model.errors import PeerLostError
from pageferry.net.control import ControlStream
from pageferry.wire.messages import (
    Abort,
    Aborted,
    Attach,
    Hello,
    Message,
    Query,
    QueryReply,
    Ready,
    Refuse,
    encode_head,
)
from pageferry.wire.session import Exchange, Role
from tests.support.daemon_bench import DaemonBench, eventually, running_daemon

MIGRATION = "ab" * 16


def hello(guest: str, migration_id: str = MIGRATION) -> Hello:
    return Hello(min_version=1, max_version=1, migration_id=migration_id, guest=guest, agent="test")


async def connect(bench: DaemonBench) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", bench.config.listen.port)


async def refusal(bench: DaemonBench, message: Hello) -> Refuse:
    async with await connect(bench) as stream:
        control = ControlStream(stream, Exchange(Role.SOURCE))
        await control.send(message)
        with trio.fail_after(10):
            answer = await control.receive()
    assert isinstance(answer, Refuse)
    return answer


async def test_hello_starts_a_worker_that_gets_the_connection(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        qmp = bench.guest("slow")
        async with await connect(bench) as stream:
            await stream.send_all(encode_head(hello("slow"), 0))
            job = await bench.packet("job")
            assert job["role"] == "destination"
            assert job["migration-id"] == MIGRATION
            assert job["qmp"] == str(qmp)
            assert job["hello"] == {"min-version": 1, "max-version": 1, "agent": "test"}
            assert job["worker"]["fds"] == 1

            async def has_worker() -> bool:
                return bench.supervisor.migrations.running()[0].worker is not None

            await eventually(has_worker)
            async with await connect(bench) as channel:
                attach = Attach(migration_id=MIGRATION, token=b"t" * 32, channel=1)
                await channel.send_all(encode_head(attach, 0))
                with trio.fail_after(10):
                    assert json.loads(await channel.receive_some()) == {"blocking": True}
            packet = await bench.packet("channel")
            assert (packet["token"], packet["channel"]) == ((b"t" * 32).hex(), 1)

            assert "already" in (await refusal(bench, hello("slow", "cd" * 16))).message
            assert "before" in (await refusal(bench, hello("slow"))).message


@pytest.mark.parametrize("name", ["nobody", "../slow", "/tmp/x.qmp", "a b"])
async def test_peer_names_a_guest_that_is_not_here(tmp_path: Path, name: str) -> None:
    async with running_daemon(tmp_path) as bench:
        answer = await refusal(bench, hello(name))
        assert "no guest" in answer.message
        assert answer.advice
        assert bench.packets() == []


async def test_peer_names_a_socket_that_exists(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        path = bench.guest("slow")
        assert "no guest" in (await refusal(bench, hello(str(path)))).message


async def test_peer_attaches_to_nothing(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench, await connect(bench) as stream:
        attach = Attach(migration_id=MIGRATION, token=b"t" * 32, channel=0)
        await stream.send_all(encode_head(attach, 0))
        with trio.fail_after(10):
            assert await stream.receive_some() == b""


async def test_peer_asks_what_became_of_a_migration(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench, await connect(bench) as stream:
        control = ControlStream(stream, Exchange(Role.SOURCE))
        await control.send(Query(migration_id=MIGRATION))
        with trio.fail_after(10):
            assert await control.receive() == QueryReply(
                phase="aborted", detail=f"asked for {MIGRATION}"
            )
            with pytest.raises(PeerLostError):
                await control.receive()


async def demanded(bench: DaemonBench) -> Message | None:
    """What a source hears that asks for its guest back; None when the connection ends."""
    async with await connect(bench) as stream:
        control = ControlStream(stream, Exchange(Role.SOURCE))
        await control.send(Query(migration_id=MIGRATION))
        with trio.fail_after(10):
            await control.receive()
            with contextlib.suppress(PeerLostError):
                await control.send(Abort(kind="unknown", message="", advice=""))
                return await control.receive()
    return None


@pytest.mark.parametrize("phase", ["ready", "receiving", "device", "loaded", "refused"])
async def test_a_source_gets_its_guest_back_that_was_not_taken(tmp_path: Path, phase: str) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.hooks.phase, bench.hooks.phase_once_settled = phase, "aborted"
        assert await demanded(bench) == Aborted()
        assert bench.hooks.settled == [MIGRATION]


@pytest.mark.parametrize("phase", ["committed", "running", "lost", "no-journal", "unreadable"])
async def test_what_was_taken_or_is_not_known_is_not_given_up(tmp_path: Path, phase: str) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.hooks.phase, bench.hooks.phase_once_settled = phase, "aborted"
        assert await demanded(bench) is None
        assert bench.hooks.settled == []


async def test_only_what_the_journal_says_afterwards_is_promised(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.hooks.phase = "loaded"
        assert await demanded(bench) is None
        assert bench.hooks.settled == [MIGRATION]


async def test_a_worker_is_asked_first_and_by_the_source_that_it_has(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("slow")
        bench.hooks.phase = "loaded"
        async with await connect(bench) as stream:
            await stream.send_all(encode_head(hello("slow"), 0))
            await bench.packet("job")
            (migration,) = bench.supervisor.migrations.running()
            migration.fingerprint = "of another agent"
            assert await demanded(bench) is None
            assert [each["type"] for each in bench.packets()] == ["job"]
            migration.fingerprint = ""
            bench.hooks.phase_once_settled = "aborted"
            assert await demanded(bench) == Aborted()
            await bench.packet("cancel")
            assert migration.finished.is_set()


async def test_those_that_may_demand_are_bounded_in_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is one too many has its answer, and asks again."""
    monkeypatch.setattr(listener_module, "MAX_DEMANDS", 1)
    async with running_daemon(tmp_path) as bench, await connect(bench) as stream:
        bench.hooks.phase, bench.hooks.phase_once_settled = "loaded", "aborted"
        first = ControlStream(stream, Exchange(Role.SOURCE))
        await first.send(Query(migration_id=MIGRATION))
        with trio.fail_after(10):
            await first.receive()
        assert await demanded(bench) is None
        await first.send(Abort(kind="unknown", message="", advice=""))
        with trio.fail_after(10):
            assert await first.receive() == Aborted()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x93\xce\xff\xff\xff\xff",
        encode_head(Ready(token=b"t" * 32, channels=1), 0),
    ],
)
async def test_peer_begins_with_something_else(tmp_path: Path, data: bytes) -> None:
    async with running_daemon(tmp_path) as bench:
        async with await connect(bench) as stream:
            await stream.send_all(data)
            with trio.fail_after(4):
                await _until_closed(stream)
        bench.guest("slow")
        async with await connect(bench) as stream:
            await stream.send_all(encode_head(hello("slow"), 0))
            await bench.packet("job")


async def test_strangers_are_bounded_in_time_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "MAX_STRANGERS", 2)
    async with running_daemon(tmp_path) as bench, trio.open_nursery() as nursery:
        listener = Listener(
            bench.config, bench.supervisor, bench.hooks.hooks(), first_message_s=0.5
        )
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = listeners[0].socket.getsockname()
        nursery.start_soon(listener.serve, listeners)
        first = await trio.open_tcp_stream(*address)
        second = await trio.open_tcp_stream(*address)
        await trio.sleep(0.1)
        start_s = trio.current_time()
        third = await trio.open_tcp_stream(*address)
        await _until_closed(first)  # it has been here longest
        assert trio.current_time() - start_s < 0.3
        await _until_closed(second)
        await _until_closed(third)
        assert 0.3 < trio.current_time() - start_s < 3
        for stream in (first, second, third):
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def _until_closed(stream: trio.SocketStream) -> None:
    try:
        assert await stream.receive_some() == b""
    except trio.BrokenResourceError:
        return
