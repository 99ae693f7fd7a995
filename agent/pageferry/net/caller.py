"""A connection that somebody has made to this host, from its first byte to where a worker takes it.

Whoever it is is a stranger until the first message has been read, and what a stranger can cost is
bounded: one task, one socket, one TLS session (some 100 KiB), 4 KiB of message, and as long as the
caller allows for all of it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass

import trio

from pageferry.certificates.description import CertificateInfo
from pageferry.model.errors import PeerLostError, RemoteProtocolError
from pageferry.net.address import Address
from pageferry.net.control import read_first_message
from pageferry.net.encryption import Credentials, Encryption
from pageferry.net.handing_over import (
    FIRST_PROTOCOL,
    HANDED_OVER,
    SecondSession,
    second_protocol,
)
from pageferry.net.streams import TlsStream, tls_stream
from pageferry.net.tls import NotReadyError, TlsError
from pageferry.wire.messages import Message

_TLS_HANDSHAKE = 0x16
"""The first byte of every TLS connection (RFC 8446, 5.1); a frame begins with another one."""

LINGER_S = 1.0
"""How long a stranger may take to read why TLS failed."""


@dataclass(slots=True)
class Caller:
    """A connection whose first message has been read.

    ``certificate`` is that of the other side; None where the connection is not encrypted.
    """

    peer: str
    message: Message
    stream: trio.SocketStream | TlsStream
    certificate: CertificateInfo | None = None
    second_session: SecondSession | None = None

    def hand_over(self) -> int:
        """A descriptor of the connection for a worker, who has to begin the second session on it.

        Ends this one, which tells the other side to go on. A connection that has broken meanwhile
        is noticed by the worker.
        """
        if isinstance(self.stream, TlsStream):
            # 24 bytes, and nothing was sent since the handshake: there is room for them.
            with contextlib.suppress(NotReadyError, TlsError, OSError):
                self.stream.session.end()
            return os.dup(self.stream.socket_fd)
        return os.dup(self.stream.socket.fileno())

    async def aclose(self) -> None:
        """Close this process's descriptor.

        Says nothing more to the other side, to whom the end of the session would mean to go on.
        """
        await _close(self.stream)


async def meet_caller(
    stream: trio.SocketStream, encryption: Encryption, credentials: Credentials, timeout_s: float
) -> Caller:
    """Get to know who has connected and what it wants. Takes over *stream*.

    An encrypted connection is taken everywhere, an unencrypted one only where it need not be.
    Raises PeerLostError, RemoteProtocolError or OSError, after *timeout_s* at the latest, and
    CertificateFileError when this host's certificates cannot be used; it has then closed *stream*.
    """
    peer = peer_name(stream)
    owner: trio.SocketStream | TlsStream = stream
    try:
        with trio.fail_after(timeout_s):
            is_tls = await _first_byte(stream) == _TLS_HANDSHAKE
            if not is_tls:
                _check_plaintext_allowed(stream, encryption, peer)
                return Caller(peer, await read_first_message(stream, timeout_s), stream)
            sock = socket.socket(fileno=stream.socket.detach())
            owner = _server(credentials, sock, peer)
            try:
                return await _first_session(owner, encryption, peer, timeout_s)
            except TlsError:
                await owner.linger(LINGER_S)
                raise
    except BaseException as error:
        await _close(owner)
        if isinstance(error, trio.TooSlowError):
            raise PeerLostError(f"no whole message came within {timeout_s:g} seconds") from error
        raise


async def _close(stream: trio.SocketStream | TlsStream) -> None:
    if isinstance(stream, TlsStream):
        stream.abandon()
    else:
        await trio.aclose_forcefully(stream)


def peer_name(stream: trio.SocketStream) -> str:
    """Where *stream* comes from, for people."""
    try:
        name = stream.socket.getpeername()
    except OSError:
        return "someone"
    return str(Address(name[0], name[1])) if isinstance(name, tuple) else "someone"


def _server(credentials: Credentials, sock: socket.socket, peer: str) -> TlsStream:
    try:
        return tls_stream(credentials.context(), sock, FIRST_PROTOCOL, peer)
    except BaseException:
        sock.close()
        raise


async def _first_session(
    stream: TlsStream, encryption: Encryption, peer: str, timeout_s: float
) -> Caller:
    await stream.handshake()
    certificate = stream.session.peer()
    message = await read_first_message(stream, timeout_s)
    second = None
    if isinstance(message, HANDED_OVER):
        if await stream.receive_some(1):
            raise RemoteProtocolError(f"something came after {message.name}, too early")
        second = SecondSession(
            encryption.directory, second_protocol(stream.session), certificate.fingerprint
        )
    return Caller(peer, message, stream, certificate, second)


async def _first_byte(stream: trio.SocketStream) -> int:
    data = await stream.socket.recv(1, socket.MSG_PEEK)
    if not data:
        raise PeerLostError("it ended before the first message")
    return int(data[0])


def _check_plaintext_allowed(stream: trio.SocketStream, encryption: Encryption, peer: str) -> None:
    host = stream.socket.getpeername()[0]
    if encryption.is_needed(str(host)):
        raise RemoteProtocolError(
            f"{peer} does not speak TLS",
            advice="both hosts must use TLS, or both have plaintext = true in [daemon]",
        )
