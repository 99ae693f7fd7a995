"""The port that other agents connect to.

Whoever connects is a stranger until its first message has been read, and strangers are bounded in
number, in time and in what they can make this process allocate. A connection that is accepted is
then handed to a worker process, descriptor and all; the daemon reads no further message from it.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Final

import trio

from pageferry.daemon.config import Config
from pageferry.daemon.hooks import Hooks
from pageferry.daemon.supervisor import Supervisor
from pageferry.model.errors import PageferryError, RefusedError
from pageferry.net.address import Address
from pageferry.net.control import ControlStream, read_first_message
from pageferry.net.data import tune
from pageferry.wire.messages import Attach, Hello, Message, Query, QueryReply, Refuse
from pageferry.wire.session import Exchange, Role

log = logging.getLogger(__name__)

FIRST_MESSAGE_S: Final = 5.0
"""How long a stranger may take for its first message: one small packet."""

ANSWER_S: Final = 5.0
"""How long a source may take to read an answer that the daemon itself gives: one small packet."""

MAX_STRANGERS: Final = 64
"""Connections whose first message is still to come; more are turned away."""

MAX_QUERIES: Final = 16
"""Connections that ask what became of a migration, at once."""


async def open_listeners(address: Address) -> list[trio.SocketListener]:
    """Listen on *address*. Raises RefusedError."""
    try:
        return await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as error:
        raise RefusedError(
            f"cannot listen on {address}: {error.strerror or error}",
            guest_state="",
            advice="stop what listens there, or set listen in [daemon] to another address",
        ) from error


class Listener:
    """Reads first messages and dispatches."""

    def __init__(
        self,
        config: Config,
        supervisor: Supervisor,
        hooks: Hooks,
        *,
        first_message_s: float = FIRST_MESSAGE_S,
    ) -> None:
        self._config = config
        self._supervisor = supervisor
        self._hooks = hooks
        self._first_message_s = first_message_s
        self._strangers = 0
        self._queries = 0

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        """Accept connections for ever. Closes the listeners when cancelled."""
        await trio.serve_listeners(self.handle, listeners)

    async def handle(self, stream: trio.SocketStream) -> None:
        """One connection, up to where somebody else takes it over. Closes *stream*."""
        peer = _peer_name(stream)
        try:
            message = await self._first_message(stream)
            if message is not None:
                await self._dispatch(stream, message, peer)
        except PageferryError as error:
            log.warning("connection from %s: %s", peer, error)
        except OSError as error:
            log.debug("connection from %s: %s", peer, error)
        except Exception:
            log.exception("connection from %s: dropped", peer)
        finally:
            await trio.aclose_forcefully(stream)

    async def _first_message(self, stream: trio.SocketStream) -> Message | None:
        if self._strangers >= MAX_STRANGERS:
            log.warning("%d connections have yet to say what they want; one dropped", MAX_STRANGERS)
            return None
        self._strangers += 1
        try:
            return await read_first_message(stream, self._first_message_s)
        finally:
            self._strangers -= 1

    async def _dispatch(self, stream: trio.SocketStream, message: Message, peer: str) -> None:
        if isinstance(message, Hello):
            await self._hello(stream, message, peer)
        elif isinstance(message, Attach):
            await self._attach(stream, message)
        elif isinstance(message, Query):
            await self._query(stream, message, peer)

    async def _hello(self, stream: trio.SocketStream, hello: Hello, peer: str) -> None:
        log.info("%s: %s brings guest %r", hello.migration_id, peer, hello.guest)
        try:
            await self._supervisor.receive_guest(hello, os.dup(stream.socket.fileno()))
        except RefusedError as error:
            log.warning("%s: refused: %s", hello.migration_id, error)
            refuse = Refuse(message=error.message, advice=error.advice)
            await self._say_last(stream, hello, refuse)

    async def _say_last(self, stream: trio.SocketStream, first: Message, answer: Message) -> None:
        """Answer the *first* message of a connection that ends with the answer."""
        exchange = Exchange(Role.DESTINATION)
        exchange.receive(first)
        with trio.move_on_after(ANSWER_S):
            await ControlStream(stream, exchange).send(answer)

    async def _attach(self, stream: trio.SocketStream, attach: Attach) -> None:
        # trio's sockets are non-blocking, and that belongs to what both descriptors share; the
        # threads of the worker block.
        with socket.socket(fileno=os.dup(stream.socket.fileno())) as data:
            tune(data)
            data.setblocking(True)
            await self._supervisor.attach(attach, data.fileno())

    async def _query(self, stream: trio.SocketStream, query: Query, peer: str) -> None:
        if self._queries >= MAX_QUERIES:
            log.warning("%d queries at once; that of %s dropped", MAX_QUERIES, peer)
            return
        self._queries += 1
        log.info("%s: %s asks what became of it", query.migration_id, peer)
        try:
            phase, detail = await trio.to_thread.run_sync(
                self._hooks.journalled_phase, self._config.state_directory, query.migration_id
            )
            await self._say_last(stream, query, QueryReply(phase=phase, detail=detail))
        finally:
            self._queries -= 1


def _peer_name(stream: trio.SocketStream) -> str:
    try:
        name = stream.socket.getpeername()
    except OSError:
        return "someone"
    return str(Address(name[0], name[1])) if isinstance(name, tuple) else "someone"
