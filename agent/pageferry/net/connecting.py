"""Connecting to another agent: TCP, TLS where it is needed, the first message.

With TLS there are two sessions in a row, see net.handing_over.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from pageferry.certificates.description import CertificateInfo
from pageferry.certificates.files import Side
from pageferry.model.errors import PeerLostError, RefusedError
from pageferry.net.address import Address
from pageferry.net.control import ControlStream
from pageferry.net.data import DataSocket, TlsSocket, connect_data, drive
from pageferry.net.encryption import Credentials, Encryption
from pageferry.net.handing_over import (
    FIRST_PROTOCOL,
    HANDED_OVER,
    CertificateCheck,
    second_protocol,
)
from pageferry.net.streams import TlsStream, tls_stream
from pageferry.net.tls import TlsContext
from pageferry.wire.messages import Attach, Message, encode, encode_head
from pageferry.wire.session import Exchange, Role

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
"""For TCP, and once more for the first session and its answer, which the daemon gives at once."""

WORKER_TIMEOUT_S = 60.0
"""For the second session: a worker process starts first."""


def _anyone(_certificate: CertificateInfo) -> None:
    return


@dataclass(frozen=True, slots=True)
class Route:
    """The way to another agent. ``context`` is None where the connection is not encrypted;
    ``check`` may refuse a host by its certificate, which has been verified by then.
    """

    address: Address
    context: TlsContext | None = None
    check: CertificateCheck = _anyone

    @property
    def peer(self) -> str:
        """What to call the other side."""
        return f"the agent at {self.address}"


def find_route(
    address: Address, encryption: Encryption, check: CertificateCheck = _anyone
) -> Route:
    """How to connect to *address*. Raises CertificateFileError when TLS is needed and this host's
    certificates cannot be used."""
    if not encryption.is_needed(address.host):
        return Route(address)
    context = Credentials(encryption.directory, Side.CLIENT).valid_context()
    return Route(address, context, check)


async def open_control(route: Route, first: Message) -> ControlStream:
    """Connect, and say *first*: Hello or Query. Returns the connection on which the answer comes.

    Raises RefusedError when the other agent cannot be reached or is not who it should be: nothing
    has come of it then.
    """
    exchange = Exchange(Role.SOURCE)
    exchange.send(first)
    stream = await _connect(route)
    try:
        if isinstance(stream, TlsStream):
            await _introduce(route, stream, first)
        else:
            await stream.send_all(encode(first))
    except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
        await trio.aclose_forcefully(stream)
        raise RefusedError(
            f"{route.peer} ended the connection: {str(error) or 'no answer'}",
            advice="see the log of pageferryd there; both hosts must use TLS, or neither",
        ) from error
    except PeerLostError as error:
        await trio.aclose_forcefully(stream)
        raise RefusedError(error.message, advice=error.advice) from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return ControlStream(stream, exchange)


def open_data(route: Route, attach: Attach) -> DataSocket:
    """Connect, and attach to a migration. Blocks.

    With TLS the worker's session is yet to begin: `begin_data`, which may only come when all data
    connections have been opened, since the worker waits for that. Raises PeerLostError.
    """
    host, port = route.address.host, route.address.port
    sock = connect_data(host, port, CONNECT_TIMEOUT_S)
    try:
        if route.context is None:
            sock.sendall(encode_head(attach))
            return sock
        protocol = _attach_with_tls(route, route.context, sock, attach)
        return TlsSocket(
            sock, route.context, protocol, peer=route.peer, host=host, check=route.check
        )
    except BaseException:
        sock.close()
        raise


def begin_data(sock: DataSocket) -> None:
    """Begin the worker's session on a data connection of `open_data`. Blocks. Raises
    PeerLostError."""
    if isinstance(sock, TlsSocket):
        sock.begin(WORKER_TIMEOUT_S)


async def _connect(route: Route) -> trio.SocketStream | TlsStream:
    address = route.address
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            tcp = await trio.open_tcp_stream(address.host, address.port)
    except (OSError, trio.TooSlowError) as error:
        raise RefusedError(
            f"the agent at {address} cannot be reached: {_reason(error)}",
            advice="check that pageferryd runs there and listens on that address",
        ) from error
    if route.context is None:
        return tcp
    sock = socket.socket(fileno=tcp.socket.detach())
    return tls_stream(route.context, sock, FIRST_PROTOCOL, route.peer, address.host)


def _reason(error: OSError | trio.TooSlowError) -> str:
    """Why no address of a host took a connection: trio itself says only that all have failed."""
    each = getattr(error.__cause__, "exceptions", ())
    numbers = dict.fromkeys(one.errno for one in each if isinstance(one, OSError))
    reasons = [os.strerror(number) for number in numbers if number is not None]
    return ", ".join(reasons) or str(error) or "no answer"


async def _introduce(route: Route, stream: TlsStream, first: Message) -> None:
    """Both sessions, or where the daemon answers itself the first one only."""
    with trio.fail_after(CONNECT_TIMEOUT_S):
        await stream.handshake()
        route.check(stream.session.peer())
        protocol = second_protocol(stream.session)
        await stream.send_all(encode(first))
        if not isinstance(first, HANDED_OVER):
            return
        await stream.end()
        answer = await stream.receive_some(1)
    if answer:
        stream.unread(answer)  # it will not be handed over, and what comes says why
        return
    stream.renew(protocol)
    with trio.fail_after(WORKER_TIMEOUT_S):
        await stream.handshake()
    route.check(stream.session.peer())


def _attach_with_tls(route: Route, context: TlsContext, sock: socket.socket, attach: Attach) -> str:
    """Say *attach* in a first session. Returns the protocol of the second one."""
    host = route.address.host
    session = context.session(sock.fileno(), FIRST_PROTOCOL, host)
    frame = encode_head(attach)

    def step(action: Callable[[], T]) -> T:
        return drive(sock, session, action, CONNECT_TIMEOUT_S, peer=route.peer, host=host)

    try:
        step(session.handshake)
        route.check(session.peer())
        protocol = second_protocol(session)
        step(lambda: session.send_all(frame))  # one record: all of it or nothing
        step(session.end)
        if step(lambda: session.receive(1)):
            raise PeerLostError(
                f"{route.peer} did not take the data connection",
                advice="see the log of pageferryd there",
            )
        return protocol
    finally:
        session.close()
