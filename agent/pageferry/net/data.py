"""Data connections: blocking sockets, for threads that send and receive inside C.

A thread that blocks on one of them is stopped with ``socket.shutdown`` from another thread.
"""

from __future__ import annotations

import socket

from pageferry.model.errors import PeerLostError
from pageferry.wire.frames import (
    PAYLOAD_HEAD_BYTES,
    PREAMBLE_BYTES,
    check_type,
    parse_payload_head,
    parse_preamble,
)
from pageferry.wire.messages import DATA_TYPES, Message, decode_meta

UNACKNOWLEDGED_LIMIT_MS = 60_000
"""How long sent bytes may stay unacknowledged, or the peer's window closed (TCP_USER_TIMEOUT): how
long a thread may hang on a peer whose host vanished; a quarter of an hour without it. Long, since a
destination that swaps hard may take nothing for a while; the heartbeat of the control connection
notices sooner who is gone."""

KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 10, 5, 3
"""When an idle connection counts as gone: after 25 seconds. A channel is idle while others work."""


def connect_data(host: str, port: int, timeout_s: float) -> socket.socket:
    """A blocking socket, connected and tuned. *timeout_s* bounds each address that *host* has.

    Raises PeerLostError when no address answers. Blocks, also for looking up the name.
    """
    try:
        sock = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        raise PeerLostError(
            f"no data connection to {host} port {port}: {error.strerror or error}",
            advice="check that pageferryd runs there, and what lies between",
        ) from error
    try:
        sock.settimeout(None)
        tune(sock)
    except OSError:
        sock.close()
        raise
    return sock


def tune(sock: socket.socket) -> None:
    """Set what every TCP connection between agents needs. Sockets that are not TCP stay as is.

    Frames begin with a short head that must not wait for more (TCP_NODELAY), and a peer whose host
    vanishes must be noticed. Buffer sizes are left to the kernel: it tunes them by itself up to 4
    and 6 MiB (tcp_wmem, tcp_rmem), while setting them ends that and is capped at some 200 KiB
    (wmem_max).
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_LIMIT_MS)


def read_frame_head(sock: socket.socket) -> Message:
    """The next Pages, Zeros, Holes or Barrier on a blocking socket.

    ``message.payload_bytes`` bytes of payload are then the next in the stream; not one of them has
    been read. Raises PeerLostError when the connection ends or breaks, RemoteProtocolError for a
    frame that is none of these.
    """
    meta_bytes = parse_preamble(_receive_exactly(sock, PREAMBLE_BYTES))
    rest = _receive_exactly(sock, meta_bytes + PAYLOAD_HEAD_BYTES)
    payload_bytes = parse_payload_head(rest[-PAYLOAD_HEAD_BYTES:])
    message = decode_meta(rest[:-PAYLOAD_HEAD_BYTES], payload_bytes)
    check_type(message, DATA_TYPES, "on a data connection")
    return message


def _receive_exactly(sock: socket.socket, count_bytes: int) -> bytes:
    data = bytearray(count_bytes)
    view = memoryview(data)
    while view:
        try:
            received_bytes = sock.recv_into(view, 0, socket.MSG_WAITALL)
        except OSError as error:
            raise PeerLostError(f"a data connection broke: {error.strerror or error}") from error
        if not received_bytes:
            raise PeerLostError("a data connection ended")
        view = view[received_bytes:]
    return bytes(data)
