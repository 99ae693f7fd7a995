"""The port for other agents with TLS: introductions, who may do what, and what strangers cost."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

import pageferry.daemon.listener as listener_module
from pageferry.certificates.files import Side
from pageferry.daemon.reloading import Reloader
from pageferry.daemon.systemd import ServiceManager
from pageferry.migration.journalled import Receivers
from pageferry.migration.negotiation import query_destination
from pageferry.model.errors import PeerLostError, RefusedError, RemoteProtocolError
from pageferry.net.address import Address
from pageferry.net.caller import Caller, meet_caller
from pageferry.net.connecting import Route, begin_data, find_route, open_control, open_data
from pageferry.net.control import ControlStream
from pageferry.net.data import TlsSocket
from pageferry.net.encryption import Credentials, Encryption
from pageferry.net.handing_over import SecondSession
from pageferry.net.streams import TlsStream, tls_stream
from pageferry.policy.peers import PeerRule, PeerRules
from pageferry.wire import messages as m
from pageferry.wire.session import Exchange, Role
from tests.support.daemon_bench import DaemonBench, eventually, running_daemon
from tests.support.pki import Pki, context

MIGRATION = "ab" * 16
TOKEN = b"t" * 32


def hello(guest: str, migration_id: str = MIGRATION) -> m.Hello:
    return m.Hello(1, 1, migration_id, guest, "test")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki.make(tmp_path_factory.mktemp("pki"))
    for name in ("host-a.example", "host-b.example", "host-c.example"):
        made.host(name)
    return made


@asynccontextmanager
async def daemon_with_tls(tmp_path: Path, pki: Pki, **changes: Any) -> AsyncIterator[DaemonBench]:
    tls = {"tls_directory": pki.folder / "host-b.example", "tls_loopback": True}
    async with running_daemon(tmp_path, **{**tls, **changes}) as bench:
        yield bench


def route_to(bench: DaemonBench, pki: Pki, host: str = "host-a.example") -> Route:
    encryption = Encryption(pki.folder / host, loopback=True)
    return find_route(Address("127.0.0.1", bench.config.listen.port), encryption)


async def refused(bench: DaemonBench, route: Route, message: m.Message) -> m.Refuse:
    with trio.fail_after(10):
        control = await open_control(route, message)
        try:
            answer = await control.receive()
        finally:
            await control.aclose()
    assert isinstance(answer, m.Refuse)
    return answer


async def test_query_is_answered_in_the_first_session(tmp_path: Path, pki: Pki) -> None:
    async with daemon_with_tls(tmp_path, pki) as bench:
        with trio.fail_after(10):
            control = await open_control(route_to(bench, pki), m.Query(MIGRATION))
            assert await control.receive() == m.QueryReply("aborted", f"asked for {MIGRATION}")
            with pytest.raises(PeerLostError):
                await control.receive()
            await control.aclose()


async def test_refusal_is_heard_in_the_first_session(tmp_path: Path, pki: Pki) -> None:
    async with daemon_with_tls(tmp_path, pki) as bench:
        answer = await refused(bench, route_to(bench, pki), hello("nobody"))
        assert "no guest" in answer.message
        assert bench.packets() == []


async def test_worker_is_told_all_that_it_needs(tmp_path: Path, pki: Pki) -> None:
    async with daemon_with_tls(tmp_path, pki) as bench:
        bench.guest("slow")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ignoring_its_end, route_to(bench, pki), hello("slow"))
            job = await bench.packet("job")
            nursery.cancel_scope.cancel()
        second = SecondSession.from_packet(job["tls"])
        assert second is not None
        assert second.directory == pki.folder / "host-b.example"
        assert second.protocol.startswith("pageferry/")
        own = context(pki.folder / "host-a.example", Side.CLIENT).own
        assert second.fingerprint == own.fingerprint
        assert job["worker"]["fds"] == 1


async def _ignoring_its_end(route: Route, first: m.Message) -> None:
    with contextlib.suppress(RefusedError):
        control = await open_control(route, first)
        await control.aclose()


async def test_data_connection_of_another_certificate_is_refused(tmp_path: Path, pki: Pki) -> None:
    async with daemon_with_tls(tmp_path, pki) as bench:
        bench.guest("slow")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ignoring_its_end, route_to(bench, pki), hello("slow"))
            await bench.packet("job")

            async def has_worker() -> bool:
                return bench.supervisor.migrations.running()[0].worker is not None

            await eventually(has_worker)
            attach = m.Attach(MIGRATION, TOKEN, 0)
            other = route_to(bench, pki, "host-c.example")
            with pytest.raises(PeerLostError):
                await trio.to_thread.run_sync(open_data, other, attach)
            assert not any(packet["type"] == "channel" for packet in bench.packets())
            same = route_to(bench, pki)
            sock = await trio.to_thread.run_sync(open_data, same, attach)
            packet = await bench.packet("channel")
            sock.close()
            assert packet["tls"]["protocol"].startswith("pageferry/")
            assert packet["tls"]["protocol"] != (await bench.packet("job"))["tls"]["protocol"]
            nursery.cancel_scope.cancel()


async def test_who_may_send_what(tmp_path: Path, pki: Pki) -> None:
    rules = PeerRules(
        (PeerRule("host-a.example", may_send=("web*",)), PeerRule("host-c.*", may_send=("slow",)))
    )
    async with daemon_with_tls(tmp_path, pki, peers=rules) as bench:
        bench.guest("slow")
        answer = await refused(bench, route_to(bench, pki), hello("slow"))
        assert "host-a.example" in answer.message
        assert "guest slow" in answer.message
        assert "[peers]" in answer.advice
        async with trio.open_nursery() as nursery:
            allowed = route_to(bench, pki, "host-c.example")
            nursery.start_soon(_ignoring_its_end, allowed, hello("slow"))
            await bench.packet("job")
            nursery.cancel_scope.cancel()


async def test_rules_leave_out_whoever_has_no_certificate(tmp_path: Path, pki: Pki) -> None:
    rules = PeerRules((PeerRule("*", may_send=("*",)),))
    async with daemon_with_tls(tmp_path, pki, peers=rules, tls_loopback=False) as bench:
        bench.guest("slow")
        plain = Route(Address("127.0.0.1", bench.config.listen.port))
        answer = await refused(bench, plain, hello("slow"))
        assert "with a certificate only" in answer.message


async def test_plaintext_where_tls_is_needed(tmp_path: Path, pki: Pki) -> None:
    async with daemon_with_tls(tmp_path, pki) as bench:
        bench.guest("slow")
        plain = Route(Address("127.0.0.1", bench.config.listen.port))
        control = await open_control(plain, hello("slow"))
        with trio.fail_after(4), pytest.raises((PeerLostError, RemoteProtocolError)):
            await control.receive()
        await control.aclose()
        assert bench.packets() == []


async def test_tls_is_welcome_where_it_is_not_needed(tmp_path: Path, pki: Pki) -> None:
    async with daemon_with_tls(tmp_path, pki, tls_loopback=False) as bench:
        answer = await refused(bench, route_to(bench, pki), hello("nobody"))
        assert "no guest" in answer.message


async def test_tls_where_there_are_no_certificates(tmp_path: Path, pki: Pki) -> None:
    nothing = {"tls_loopback": False, "tls_directory": tmp_path / "none"}
    async with daemon_with_tls(tmp_path, pki, **nothing) as bench:
        with trio.fail_after(10), pytest.raises(RefusedError) as caught:
            await open_control(route_to(bench, pki), hello("slow"))
        assert "both hosts must use TLS" in caught.value.advice


async def test_peer_of_another_authority(tmp_path: Path, pki: Pki) -> None:
    other = Pki.make(tmp_path / "other", "another authority")
    other.host("host-x.example")
    async with daemon_with_tls(tmp_path, pki) as bench:
        with trio.fail_after(10), pytest.raises(RefusedError, match="not issued by an authority"):
            await open_control(route_to(bench, other, "host-x.example"), hello("slow"))
        # One that trusts us, and whom we do not.
        stranger = tmp_path / "other" / "host-x.example"
        (stranger / "ca-cert.pem").write_bytes(
            (pki.folder / "host-b.example" / "ca-cert.pem").read_bytes()
        )
        with trio.fail_after(10), pytest.raises(RefusedError, match="does not know the authority"):
            await open_control(route_to(bench, other, "host-x.example"), hello("slow"))
        assert bench.packets() == []


async def test_certificates_are_reloaded(tmp_path: Path) -> None:
    made = Pki.make(tmp_path / "pki")
    for name in ("host-a.example", "host-b.example"):
        made.host(name)
    seen = []
    async with daemon_with_tls(tmp_path, made) as bench:
        for turn in range(3):
            route = route_to(bench, made)
            control = await open_control(
                Route(route.address, route.context, lambda each: seen.append(each.fingerprint)),
                m.Query(MIGRATION),
            )
            await control.receive()
            await control.aclose()
            if turn == 0:
                made.host("host-b.example", force=True)
            if turn == 1:
                os.kill(os.getpid(), signal.SIGHUP)  # the daemon lives on
                await trio.sleep(0.1)
    assert seen[0] != seen[1]
    assert seen[1] == seen[2]


@pytest.mark.parametrize(("loopback", "complaints"), [(False, 0), (True, 2)])
async def test_certificates_that_nobody_needs_are_not_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loopback: bool, complaints: int
) -> None:
    none = tmp_path / "none"
    async with running_daemon(tmp_path, tls_directory=none) as bench:
        bench.supervisor.reconfigure(replace(bench.config, tls_loopback=loopback))
        credentials = [Credentials(none, side) for side in Side]
        await Reloader(bench.supervisor, ServiceManager(), None, credentials).reload()
    errors = [each for each in caplog.records if each.levelname == "ERROR"]
    assert len(errors) == complaints, errors


async def test_something_after_hello_comes_too_early(tmp_path: Path, pki: Pki) -> None:
    async with daemon_with_tls(tmp_path, pki) as bench:
        bench.guest("slow")
        route = route_to(bench, pki)
        assert route.context is not None
        tcp = await trio.open_tcp_stream("127.0.0.1", bench.config.listen.port)
        sock = socket.socket(fileno=tcp.socket.detach())
        stream = tls_stream(route.context, sock, "pageferry", "daemon", "127.0.0.1")
        await stream.handshake()
        await stream.send_all(m.encode(hello("slow")) + b"x")
        with trio.fail_after(4):
            assert await _end_of(stream)
        await stream.aclose()
        assert bench.packets() == []


async def _end_of(stream: TlsStream) -> bool:
    try:
        return await stream.receive_some(1) == b""
    except (OSError, PeerLostError):
        return True


async def drip(stream: trio.SocketStream, interval_s: float) -> None:
    """A TLS record, a byte at a time, until the other side has had enough."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for byte in b"\x16\x03\x01\x40\x00" + bytes(1000):
            await stream.send_all(bytes([byte]))
            await trio.sleep(interval_s)


async def test_silent_and_slow_strangers_do_not_keep_others_out(
    tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as many as may be here at once say nothing, or a byte at a time, within TLS or not."""
    monkeypatch.setattr(listener_module, "MAX_STRANGERS", 8)
    async with daemon_with_tls(tmp_path, pki) as bench, trio.open_nursery() as nursery:
        strangers = [
            await trio.open_tcp_stream("127.0.0.1", bench.config.listen.port) for _ in range(16)
        ]
        for stream in strangers[::2]:
            nursery.start_soon(drip, stream, 0.02)
        await trio.sleep(0.2)
        for _ in range(20):
            with trio.fail_after(4):
                control = await open_control(route_to(bench, pki), m.Query(MIGRATION))
                assert isinstance(await control.receive(), m.QueryReply)
                await control.aclose()
        for stream in strangers:
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_dripping_stranger_has_to_go_in_time(tmp_path: Path, pki: Pki) -> None:
    async with daemon_with_tls(tmp_path, pki) as bench:
        stream = await trio.open_tcp_stream("127.0.0.1", bench.config.listen.port)
        start_s = trio.current_time()
        with trio.move_on_after(20):
            await drip(stream, 0.1)
        assert 4 < trio.current_time() - start_s < 9
        await stream.aclose()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_memory_of_strangers_is_bounded(tmp_path: Path, pki: Pki) -> None:
    """Each has begun TLS, and announces the largest certificate chain it can think of."""
    async with daemon_with_tls(tmp_path, pki) as bench:
        await refused(bench, route_to(bench, pki), hello("nobody"))
        before = resident_bytes()
        socks = []
        for _ in range(4 * listener_module.MAX_STRANGERS):
            sock = socket.create_connection(("127.0.0.1", bench.config.listen.port))
            # A handshake message of 16 MiB, in a record of 16 KiB.
            sock.sendall(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(16000))
            socks.append(sock)
            await trio.sleep(0.005)
        grown = resident_bytes() - before
        for sock in socks:
            sock.close()
    assert grown < 40 << 20, f"{grown >> 20} MiB"


@asynccontextmanager
async def callers(pki: Pki) -> AsyncIterator[tuple[Route, Callable[[], Awaitable[Caller]]]]:
    """A port as the daemon has one, and the way to it."""
    encryption = Encryption(pki.folder / "host-b.example", loopback=True)
    credentials = Credentials(encryption.directory, Side.SERVER)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def accept() -> Caller:
        return await meet_caller(await listeners[0].accept(), encryption, credentials, 5)

    address = Address("127.0.0.1", listeners[0].socket.getsockname()[1])
    try:
        yield find_route(address, Encryption(pki.folder / "host-a.example", loopback=True)), accept
    finally:
        await listeners[0].aclose()


async def taken_over(caller: Caller) -> tuple[socket.socket, SecondSession]:
    """What a worker gets of a connection."""
    sock = socket.socket(fileno=caller.hand_over())
    await caller.aclose()
    assert caller.second_session is not None
    return sock, caller.second_session


async def test_both_sessions_of_a_control_connection(pki: Pki) -> None:
    described = m.Describe("pc", "10.0", (("ram", 4096),), True, 1, False)

    async def source(route: Route) -> None:
        control = await open_control(route, hello("web"))
        assert await control.receive() == m.HelloReply(1, "worker")
        await control.send(described)
        with pytest.raises(PeerLostError):
            await control.receive()
        await control.aclose()

    with trio.fail_after(20):
        async with callers(pki) as (route, accept), trio.open_nursery() as nursery:
            nursery.start_soon(source, route)
            caller = await accept()
            sock, second = await taken_over(caller)
            stream = tls_stream(second.context(), sock, second.protocol, "source")
            await stream.handshake()
            second.check(stream.session.peer())
            exchange = Exchange(Role.DESTINATION)
            exchange.receive(caller.message)
            control = ControlStream(stream, exchange)
            await control.send(m.HelloReply(1, "worker"))
            assert await control.receive() == described
            await control.aclose()


async def test_both_sessions_of_a_data_connection(pki: Pki) -> None:
    def source(route: Route) -> None:
        sock = open_data(route, m.Attach(MIGRATION, TOKEN, 0))
        begin_data(sock)
        sock.sendall(b"pages")
        sock.close()

    def worker(sock: socket.socket, second: SecondSession) -> bytearray:
        sock.setblocking(True)
        data = TlsSocket(
            sock, second.context(), second.protocol, peer="source", host=None, check=second.check
        )
        data.begin(5)
        buffer = bytearray(5)
        assert data.recv_into(memoryview(buffer)) == 5
        data.close()
        return buffer

    with trio.fail_after(20):
        async with callers(pki) as (route, accept), trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, source, route)
            taken = await taken_over(await accept())
            assert await trio.to_thread.run_sync(worker, *taken) == b"pages"


def test_second_session_with_another_certificate_is_refused(pki: Pki) -> None:
    own = context(pki.folder / "host-a.example", Side.CLIENT).own
    other = context(pki.folder / "host-c.example", Side.CLIENT).own
    second = SecondSession(pki.folder, "pageferry/x", own.fingerprint)
    second.check(own)
    with pytest.raises(RemoteProtocolError, match="another certificate"):
        second.check(other)


async def _asked(bench: DaemonBench, pki: Pki, host: str) -> m.Message:
    control = await open_control(route_to(bench, pki, host), m.Query(MIGRATION))
    with trio.fail_after(4):
        answer = await control.receive()
    await control.aclose()
    return answer


async def test_who_may_ask_what_became_of_a_migration(tmp_path: Path, pki: Pki) -> None:
    """Whoever may send the guest here, and without a journal whoever may send any."""
    rules = PeerRules(
        (PeerRule("host-a.example", may_send=("web*",)), PeerRule("host-c.*", may_receive=("web",)))
    )
    for known_guest, host, phase in (
        ("web", "host-a.example", "aborted"),
        ("mail", "host-a.example", "not-allowed"),
        ("web", "host-c.example", "not-allowed"),
        ("", "host-a.example", "aborted"),
        ("", "host-c.example", "not-allowed"),
    ):
        folder = tmp_path / f"{known_guest}-{host}"
        folder.mkdir()
        async with daemon_with_tls(folder, pki, peers=rules) as bench:
            bench.hooks.asked_guest = known_guest
            answer = await _asked(bench, pki, host)
            assert isinstance(answer, m.QueryReply)
            assert answer.phase == phase


async def test_only_its_source_gets_a_guest_back_from_a_worker(tmp_path: Path, pki: Pki) -> None:
    async with daemon_with_tls(tmp_path, pki) as bench:
        bench.guest("slow")
        bench.hooks.phase, port = "loaded", bench.config.listen.port

        async def demanded(host: str) -> str:
            encryption = Encryption(pki.folder / host, loopback=True)
            check = Receivers().check
            with trio.fail_after(20):
                return await query_destination(
                    "127.0.0.1", port, MIGRATION, encryption, check, demand=True
                )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ignoring_its_end, route_to(bench, pki), hello("slow"))
            await bench.packet("job")
            assert await demanded("host-c.example") == "loaded"
            assert [packet["type"] for packet in bench.packets()] == ["job"]
            bench.hooks.phase_once_settled = "aborted"
            assert await demanded("host-a.example") == "aborted"
            await bench.packet("cancel")
            nursery.cancel_scope.cancel()


async def test_without_rules_whoever_has_a_certificate_may_ask(tmp_path: Path, pki: Pki) -> None:
    async with daemon_with_tls(tmp_path, pki) as bench:
        answer = await _asked(bench, pki, "host-c.example")
        assert isinstance(answer, m.QueryReply)
        assert answer.phase == "aborted"


async def test_the_word_of_an_agent_that_may_not_receive_the_guest_does_not_count(
    tmp_path: Path, pki: Pki
) -> None:
    async with daemon_with_tls(tmp_path, pki) as bench:
        encryption = Encryption(pki.folder / "host-a.example", loopback=True)
        port = bench.config.listen.port

        async def asked(*patterns: str) -> str:
            check = Receivers(patterns).check
            return await query_destination("127.0.0.1", port, MIGRATION, encryption, check)

        assert await asked("host-c.*", "host-b.example") == "aborted"
        with pytest.raises(RefusedError, match="may not receive this guest"):
            await asked("host-c.*")
