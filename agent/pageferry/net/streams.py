"""Byte streams for the control connection: plain and TLS, cancellable at any point."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

from pageferry.net.tls import NotReadyError, Session, TlsContext, TlsError
from pageferry.net.tls_errors import explained

T = TypeVar("T")

RECORD_BYTES = 16384
"""Longest record of TLS. Sending in pieces of it keeps the promise to begin again with at least as
many bytes after a cancellation."""


class Stream(Protocol):
    """What the control connection needs. After a cancellation nothing has been lost: a send that
    was cancelled is done again with the same bytes first.
    """

    async def send_some(self, data: bytes) -> int: ...

    async def receive_some(self, max_bytes: int) -> bytes: ...

    async def aclose(self) -> None: ...


class PlainStream:
    """A TCP connection as it is."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def send_some(self, data: bytes) -> int:
        """Send the first bytes of *data*; returns how many. Raises OSError or
        ClosedResourceError."""
        return await self._stream.socket.send(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        """What comes next, b"" at the end. Raises BrokenResourceError or ClosedResourceError."""
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        """Close it."""
        await self._stream.aclose()


class TlsStream(trio.abc.AsyncResource):
    """A TLS session on a non-blocking socket. One task may send while another receives.

    Raises TlsError, which says what it means to the operator, OSError as the socket does, and
    ClosedResourceError.
    """

    def __init__(self, sock: socket.socket, session: Session, peer: str, host: str | None) -> None:
        self.session = session
        self._socket = sock
        self._peer = peer
        self._host = host
        self._unread = b""
        self._closed = False

    async def handshake(self) -> None:
        """Get to know each other. There is no deadline in here."""
        await self._drive(self.session.handshake)

    def renew(self, protocol: str) -> None:
        """Begin a new session on the same connection, when the one before has been ended."""
        before, self.session = (
            self.session,
            self.session.context.session(self._socket.fileno(), protocol, self._host),
        )
        before.close()

    async def send_some(self, data: bytes) -> int:
        """Send the first bytes of *data*; returns how many."""
        return await self._drive(lambda: self.session.send(data[:RECORD_BYTES]))

    async def send_all(self, data: bytes) -> None:
        """Send all of *data*. After a cancellation the session is of no more use."""
        while data:
            data = data[await self.send_some(data) :]

    async def receive_some(self, max_bytes: int) -> bytes:
        """What comes next; b"" when the peer has ended the session."""
        if self._unread:
            await trio.lowlevel.checkpoint()
            data, self._unread = self._unread[:max_bytes], self._unread[max_bytes:]
            return data
        return await self._drive(lambda: self.session.receive(min(max_bytes, RECORD_BYTES)))

    @property
    def socket_fd(self) -> int:
        """The connection's descriptor."""
        return self._socket.fileno()

    def unread(self, data: bytes) -> None:
        """Have *data*, which was received before, received once more."""
        self._unread = data + self._unread

    async def end(self) -> None:
        """Say that nothing more will be sent."""
        await self._drive(self.session.end)

    async def linger(self, most_s: float) -> None:
        """Let the peer read why the session failed: were the connection closed with something of
        the peer's unread in it, TCP would throw away the alert that is on its way."""
        with trio.move_on_after(most_s), contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                if not self._socket.recv(4096):
                    return

    async def aclose(self) -> None:
        """Close socket and session. Says so to the peer if that takes no waiting."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(NotReadyError, TlsError, OSError):
                self.session.end()
            self._release()
        await trio.lowlevel.checkpoint()

    def abandon(self) -> None:
        """Close socket and session without a word to the peer. Does nothing when they are."""
        if not self._closed:
            self._closed = True
            self._release()

    def _release(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self.session.close()

    async def _drive(self, step: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            try:
                result = step()
            except NotReadyError as want:
                if want.write:
                    await trio.lowlevel.wait_writable(self._socket)
                else:
                    await trio.lowlevel.wait_readable(self._socket)
            except TlsError as error:
                raise explained(error, self.session, self._peer, self._host) from error
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return result


def tls_stream(
    context: TlsContext, sock: socket.socket, protocol: str, peer: str, host: str | None = None
) -> TlsStream:
    """A TLS session on *sock*, a non-blocking socket, before its handshake. Takes over *sock*."""
    return TlsStream(sock, context.session(sock.fileno(), protocol, host), peer, host)


def plain_or_same(stream: trio.SocketStream | Stream) -> Stream:
    """*stream* as a Stream."""
    return PlainStream(stream) if isinstance(stream, trio.SocketStream) else stream
