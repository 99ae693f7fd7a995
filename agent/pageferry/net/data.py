"""Data connections: blocking sockets, plain or with TLS, for threads that send and receive in C.

A thread that blocks on one of them is stopped with ``shutdown`` from another thread.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import TypeVar

from pageferry.model.errors import PeerLostError
from pageferry.net.handing_over import CertificateCheck
from pageferry.net.tls import NotReadyError, Session, TlsContext, TlsError
from pageferry.net.tls_errors import explained
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


T = TypeVar("T")


class TlsSocket:
    """A TLS session on a blocking socket, with those methods of ``socket.socket`` that data
    connections use. One thread at a time, but for `shutdown`.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: TlsContext,
        protocol: str,
        *,
        peer: str,
        host: str | None,
        check: CertificateCheck,
    ) -> None:
        """Takes over *sock*. Nothing is sent before `begin`."""
        self._socket = sock
        self._peer = peer
        self._host = host
        self._check = check
        self._session = context.session(sock.fileno(), protocol, host, read_ahead=True)

    def begin(self, timeout_s: float) -> None:
        """The handshake, and the check of who is there; must come before anything else.

        Raises PeerLostError when it takes longer, TlsError when it fails, and what the check
        raises.
        """
        drive(
            self._socket,
            self._session,
            self._session.handshake,
            timeout_s,
            peer=self._peer,
            host=self._host,
        )
        self._check(self._session.peer())

    @property
    def wire_address(self) -> int:
        """For kernel.transfer."""
        return self._session.wire_address

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all of *data*. Raises TlsError or OSError."""
        self._session.send_all(data)

    def recv_into(self, view: memoryview, _bytes: int = 0, _flags: int = 0) -> int:
        """Fill *view*. Raises TlsError or OSError."""
        self._session.receive_into(view)
        return len(view)

    def shutdown(self, how: int) -> None:
        """Make whatever blocks on the socket return, now and later; from any thread."""
        self._socket.shutdown(how)

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        """Set an option of the socket."""
        self._socket.setsockopt(level, option, value)

    def close(self) -> None:
        """Close it; no thread may be using it any more."""
        self._session.close()
        self._socket.close()


DataSocket = socket.socket | TlsSocket

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def close_at_once(sock: DataSocket) -> None:
    """Close it, and drop what is still on its way; no thread may be using it any more.

    For the end of a migration, when nobody wants that. TCP tells the peer by a reset (tcp(7),
    SO_LINGER of 0). By a plain close the peer would know nothing for up to a minute, and keep its
    4 MiB in the kernel: when the window was full, and is emptied after a shutdown, it is never said
    to be open again (tcp_cleanup_rbuf).
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def wire_address(sock: DataSocket) -> int | None:
    """What kernel.transfer needs to know of *sock* beside its descriptor."""
    return sock.wire_address if isinstance(sock, TlsSocket) else None


def drive(
    sock: socket.socket,
    session: Session,
    step: Callable[[], T],
    timeout_s: float,
    *,
    peer: str,
    host: str | None,
) -> T:
    """Do one *step* of *session* on a blocking socket, in *timeout_s* altogether.

    Raises PeerLostError when it takes longer or the connection breaks, and TlsError. The socket's
    own timeouts would not do: they start anew with every byte that comes.
    """
    deadline_s = time.monotonic() + timeout_s
    sock.setblocking(False)
    try:
        while True:
            try:
                return step()
            except NotReadyError as want:
                _wait(sock, deadline_s, peer, write=want.write)
    except TlsError as error:
        raise explained(error, session, peer, host) from error
    except OSError as error:
        raise PeerLostError(
            f"the connection to {peer} broke while TLS began: {error.strerror or error}",
            advice="see the log of pageferryd there; both hosts must use TLS, or neither",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            sock.setblocking(True)


def _wait(sock: socket.socket, deadline_s: float, peer: str, *, write: bool) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLOUT if write else select.POLLIN)
    left_s = deadline_s - time.monotonic()
    if left_s <= 0 or not poll.poll(left_s * 1000):
        raise PeerLostError(
            f"{peer} does not answer while TLS begins",
            advice="check the network and the log of pageferryd there",
        )


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


def read_frame_head(sock: DataSocket) -> Message:
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


def _receive_exactly(sock: DataSocket, count_bytes: int) -> bytes:
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
