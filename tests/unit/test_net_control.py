"""The control connection over real sockets."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from pageferry.model.errors import LocalProtocolError, PeerLostError, RemoteProtocolError
from pageferry.net.control import ControlStream, read_first_message
from pageferry.wire import messages as m
from pageferry.wire.session import Exchange, Role
from tests.wire.pair import ABORT, DEVICE, HELLO, OPENING, REPLY, WHOLE, D, Pair, S

IN_DEVICE_PHASE = [*OPENING, *DEVICE[:2]]


def stream_of(sock: socket.socket) -> trio.SocketStream:
    sock.setblocking(False)
    # SocketStream sets TCP options, which a UNIX socket refuses and trio ignores.
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return stream_of(left), stream_of(right)


@asynccontextmanager
async def control_pair(
    script: list[tuple[Role, m.Message]],
) -> AsyncIterator[tuple[ControlStream, ControlStream]]:
    """Source and destination that have said *script* already."""
    said = Pair(script)
    left, right = stream_pair()
    source, destination = ControlStream(left, said.sides[S]), ControlStream(right, said.sides[D])
    try:
        yield source, destination
    finally:
        await source.aclose()
        await destination.aclose()


@asynccontextmanager
async def raw_peer(
    script: list[tuple[Role, m.Message]], role: Role
) -> AsyncIterator[tuple[ControlStream, trio.SocketStream]]:
    """One side, and the bare stream that it talks to."""
    left, right = stream_pair()
    control = ControlStream(left, Pair(script).sides[role])
    try:
        yield control, right
    finally:
        await control.aclose()
        await right.aclose()


async def test_whole_migration() -> None:
    async with control_pair([]) as (source, destination):
        for speaker, message in WHOLE:
            teller, hearer = (source, destination) if speaker is S else (destination, source)
            await teller.send(message)
            assert await hearer.receive() == message
    assert source.exchange.is_over


async def test_what_may_not_be_said_sends_nothing() -> None:
    async with control_pair(OPENING) as (source, destination):
        with pytest.raises(LocalProtocolError):
            await source.send(m.Commit())
        await source.send(m.PrepareDevice())
        assert await destination.receive() == m.PrepareDevice()


async def test_message_that_cannot_be_encoded_is_not_counted_as_said() -> None:
    async with control_pair([]) as (source, _):
        with pytest.raises(LocalProtocolError):
            await source.send(m.Hello(1, 1, "no hex", "guest", "agent"))
        assert source.exchange.may_send(HELLO)


async def test_peer_closes() -> None:
    async with control_pair(OPENING) as (source, destination):
        await destination.aclose()
        with pytest.raises(PeerLostError):
            await source.receive()
        with pytest.raises(PeerLostError):
            await source.send(m.PrepareDevice())
        with pytest.raises(PeerLostError):
            await source.send(ABORT)


async def test_peer_closes_amid_a_frame() -> None:
    async with raw_peer(OPENING[:1], S) as (source, wire):
        await wire.send_all(m.encode(REPLY)[:-1])
        await wire.aclose()
        with pytest.raises(PeerLostError):
            await source.receive()


async def test_peer_sends_what_is_no_frame() -> None:
    async with raw_peer(OPENING, S) as (source, wire):
        await wire.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        for _ in range(2):
            with pytest.raises(RemoteProtocolError):
                await source.receive()


async def test_peer_speaks_out_of_order() -> None:
    async with raw_peer(OPENING, S) as (source, wire):
        await wire.send_all(m.encode(m.Running("running")))
        with pytest.raises(RemoteProtocolError):
            await source.receive()


async def test_cancelled_send_never_cuts_a_frame() -> None:
    async with raw_peer(IN_DEVICE_PHASE, S) as (source, wire):
        piece = m.DeviceData(bytes(1024 * 1024))  # more than the socket's buffer takes
        with trio.move_on_after(0.05) as scope:
            await source.send(piece)
        assert scope.cancelled_caught
        destination = ControlStream(wire, Pair(IN_DEVICE_PHASE).sides[D])
        heard = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.send, ABORT)
            heard.append(await destination.receive())
            heard.append(await destination.receive())
        assert heard == [piece, ABORT]


async def test_commit_counts_as_said_when_sending_it_is_cancelled() -> None:
    async with control_pair(WHOLE[:-2]) as (source, _):
        with trio.CancelScope() as scope:
            scope.cancel()
            await source.send(m.Commit())
        assert scope.cancelled_caught
        assert source.exchange.outcome_unknown
        assert not source.exchange.source_may_resume


async def test_cancelled_receive_loses_nothing() -> None:
    async with raw_peer(IN_DEVICE_PHASE, D) as (destination, wire):
        message = m.DeviceData(bytes(range(256)))
        frame = m.encode(message)
        for cut in range(0, len(frame) - 1, 40):
            await wire.send_all(frame[cut : min(cut + 40, len(frame) - 1)])
            with trio.move_on_after(0.005):
                await destination.receive()
        await wire.send_all(frame[-1:])
        assert await destination.receive() == message


async def test_several_tasks_send_whole_frames() -> None:
    async with control_pair(IN_DEVICE_PHASE) as (source, destination):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(source.send, m.DeviceData(bytes([number]) * 300_000))
            heard = [await destination.receive() for _ in range(8)]
        assert sorted(
            message.payload[0] for message in heard if isinstance(message, m.DeviceData)
        ) == [*range(8)]


async def test_only_one_task_receives() -> None:
    async with control_pair(OPENING) as (source, _), trio.open_nursery() as nursery:
        nursery.start_soon(source.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await source.receive()
        nursery.cancel_scope.cancel()


async def test_both_sides_send_more_than_fits_without_deadlock() -> None:
    async def receive(side: ControlStream, count: int) -> None:
        for _ in range(count):
            await side.receive()

    with trio.fail_after(20):
        async with control_pair(IN_DEVICE_PHASE) as sides, trio.open_nursery() as nursery:
            for side in sides:
                nursery.start_soon(receive, side, 6)
                for _ in range(6):
                    nursery.start_soon(side.send, m.DeviceData(bytes(1024 * 1024)))


async def test_heartbeat_is_answered_by_receiving() -> None:
    async with control_pair(OPENING) as (source, destination), trio.open_nursery() as nursery:
        nursery.start_soon(source.heartbeat, 0.01, 0.5)
        nursery.start_soon(destination.heartbeat, 0.01, 0.5)
        nursery.start_soon(source.receive)
        with trio.move_on_after(0.8):
            await destination.receive()
        nursery.cancel_scope.cancel()


async def test_heartbeat_waits_until_it_is_allowed(autojump_clock: trio.testing.MockClock) -> None:
    async with raw_peer([(S, HELLO)], S) as (source, wire):
        with trio.move_on_after(100):
            await source.heartbeat(1, 3)
        with trio.move_on_after(1) as silent:
            await wire.receive_some()
        assert silent.cancelled_caught


async def test_peer_falls_silent(autojump_clock: trio.testing.MockClock) -> None:
    async with raw_peer(OPENING, S) as (source, _):
        began_s = trio.current_time()
        with pytest.raises(PeerLostError, match="said nothing"):
            await source.heartbeat(1, 10)
        assert 10 <= trio.current_time() - began_s <= 12


async def test_peer_stops_reading(autojump_clock: trio.testing.MockClock) -> None:
    async with raw_peer(IN_DEVICE_PHASE, S) as (source, _), trio.open_nursery() as nursery:
        nursery.start_soon(source.send, m.DeviceData(bytes(1024 * 1024)))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(PeerLostError, match="said nothing"):
            await source.heartbeat(1, 10)
        nursery.cancel_scope.cancel()


async def test_peer_pings_without_reading_the_answers() -> None:
    async with raw_peer(IN_DEVICE_PHASE, D) as (destination, wire):
        filler = m.DeviceData(bytes(1024 * 1024))
        with trio.move_on_after(0.05):
            await destination.send(filler)
        await wire.send_all(m.encode(m.Ping(1)) + m.encode(m.DeviceData(b"on it goes")))
        with trio.fail_after(10):
            assert await destination.receive() == m.DeviceData(b"on it goes")


async def test_heartbeat_ends_with_the_exchange() -> None:
    async with control_pair(WHOLE) as (source, _):
        with trio.fail_after(5):
            await source.heartbeat(1, 10)


async def test_pumps_may_come_late() -> None:
    async with control_pair(WHOLE) as (_, destination):
        await destination.send(m.DeviceEnd())
        with pytest.raises(LocalProtocolError):
            await destination.send(m.Running("running"))


@pytest.mark.parametrize("first", [HELLO, m.Query("ab" * 8), m.Attach("ab" * 8, bytes(32), 1)])
async def test_first_message_takes_no_byte_of_what_follows(first: m.Message) -> None:
    left, right = stream_pair()
    async with left, right:
        await left.send_all(m.encode(first) + b"what follows")
        assert await read_first_message(right, 5) == first
        assert await right.receive_some() == b"what follows"


async def test_first_message_comes_byte_by_byte() -> None:
    left, right = stream_pair()
    async with left, right, trio.open_nursery() as nursery:

        async def send() -> None:
            for byte in m.encode(HELLO):
                await left.send_all(bytes([byte]))
                await trio.testing.wait_all_tasks_blocked()

        nursery.start_soon(send)
        assert await read_first_message(right, 5) == HELLO


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(m.encode(REPLY), id="another message"),
        pytest.param(m.encode_head(m.Zeros(0, 1, [0, 1])), id="data frame"),
        pytest.param(m.encode_head(m.Pages(0, 1, [0, 1], False)), id="frame with payload"),
        pytest.param(b"\x93\xce\x00\x00\x10\x01", id="meta longer than a first one may be"),
        pytest.param(b"\x93\xce\xff\xff\xff\xff", id="meta of 4 GiB"),
        pytest.param(b"GET / HTTP/1.1\r\n", id="HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", id="TLS"),
    ],
)
async def test_stranger_begins_with(data: bytes) -> None:
    left, right = stream_pair()
    async with left, right:
        await left.send_all(data)
        with pytest.raises(RemoteProtocolError):
            await read_first_message(right, 5)


async def test_stranger_says_nothing(autojump_clock: trio.testing.MockClock) -> None:
    left, right = stream_pair()
    async with left, right:
        await left.send_all(m.encode(HELLO)[:-1])
        with pytest.raises(PeerLostError, match="5 seconds"):
            await read_first_message(right, 5)


async def test_stranger_hangs_up() -> None:
    left, right = stream_pair()
    async with right:
        await left.send_all(m.encode(HELLO)[:3])
        await left.aclose()
        with pytest.raises(PeerLostError):
            await read_first_message(right, 5)


async def test_exchange_may_have_begun_elsewhere() -> None:
    """The daemon reads Hello, the worker goes on from there."""
    left, right = stream_pair()
    source = ControlStream(left, Exchange(Role.SOURCE))
    await source.send(HELLO)
    hello = await read_first_message(right, 5)
    exchange = Exchange(Role.DESTINATION)
    exchange.receive(hello)
    destination = ControlStream(right, exchange)
    await destination.send(REPLY)
    assert await source.receive() == REPLY
    await source.aclose()
    await destination.aclose()
