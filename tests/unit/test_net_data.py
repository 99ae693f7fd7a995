"""Data connections over real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from pageferry.model.errors import PeerLostError, RemoteProtocolError
from pageferry.net.data import close_at_once, connect_data, read_frame_head, tune
from pageferry.wire import messages as m

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    left, right = socket.socketpair()
    with left, right:
        right.settimeout(10)
        yield left, right


def test_heads_are_read_without_their_payload(ends: Ends) -> None:
    left, right = ends
    pages = m.Pages(0, 1, [3, 2], True)
    left.sendall(m.encode_head(pages) + b"p" * 8192 + m.encode_head(m.Barrier(1, 1)))
    assert read_frame_head(right) == pages
    assert right.recv(8192, socket.MSG_WAITALL) == b"p" * 8192
    assert read_frame_head(right) == m.Barrier(1, 1)


def test_head_comes_byte_by_byte(ends: Ends) -> None:
    left, right = ends
    holes = m.Holes(2, 7, [1, 2, 3, 4])

    def send() -> None:
        for byte in m.encode_head(holes):
            left.sendall(bytes([byte]))

    thread = threading.Thread(target=send)
    thread.start()
    assert read_frame_head(right) == holes
    thread.join()


@pytest.mark.parametrize("length", [0, 1, 6, 10, -1])
def test_peer_ends_the_connection(ends: Ends, length: int) -> None:
    left, right = ends
    left.sendall(m.encode_head(m.Barrier(1, 0))[:length])
    left.close()
    with pytest.raises(PeerLostError):
        read_frame_head(right)


def test_shutdown_wakes_the_reader(ends: Ends) -> None:
    _, right = ends
    right.settimeout(None)
    caught: list[Exception] = []

    def read() -> None:
        try:
            read_frame_head(right)
        except PeerLostError as error:
            caught.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    right.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert len(caught) == 1


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(m.encode(m.Commit()), id="control message"),
        pytest.param(m.encode(m.Attach("ab" * 8, bytes(32), 0)), id="attach twice"),
        pytest.param(b"\x93\xce\x00\x04\x00\x01", id="meta beyond the limit"),
        pytest.param(m.encode_head(m.Barrier(1, 0))[:-4] + b"\x00\x00\x00\x01", id="payload"),
        pytest.param(b"p" * 4096, id="payload where a head is due"),
    ],
)
def test_peer_sends(ends: Ends, data: bytes) -> None:
    left, right = ends
    left.sendall(data)
    with pytest.raises(RemoteProtocolError):
        read_frame_head(right)


def test_connected_socket_is_blocking_and_tuned() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        connect_data("127.0.0.1", server.getsockname()[1], 5) as sock,
    ):
        accepted, _ = server.accept()
        with accepted:
            tune(accepted)
            for end in (sock, accepted):
                assert end.gettimeout() is None
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) > 0


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(PeerLostError, match=str(port)):
        connect_data("127.0.0.1", port, 5)


def test_unix_sockets_are_left_alone(ends: Ends) -> None:
    tune(ends[0])


def test_a_peer_that_waits_for_room_hears_of_the_close_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        here, _ = server.accept()
    with peer:
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                peer.send(bytes(1 << 20))
        # A thread that was amid a frame goes on reading what has come.
        here.shutdown(socket.SHUT_RDWR)
        while here.recv(1 << 20):
            continue
        close_at_once(here)
        peer.settimeout(5)
        with pytest.raises(ConnectionError):
            peer.sendall(bytes(1 << 24))
