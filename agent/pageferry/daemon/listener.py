"""The port that other agents connect to.

Whoever connects is a stranger until its first message has been read, and strangers are bounded in
number, in time and in what they can make this process allocate. When there are too many the one
that has been here longest has to go: whoever means well is known within milliseconds. A connection
that is accepted is handed to a worker process, descriptor and all; the daemon reads no further
message from it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import Final

import trio

from pageferry.certificates.files import Side
from pageferry.daemon.admission import may_ask
from pageferry.daemon.config import Config
from pageferry.daemon.destination_checks import NOT_ALLOWED
from pageferry.daemon.doctor import room_for
from pageferry.daemon.giving_up import give_up
from pageferry.daemon.hooks import Hooks
from pageferry.daemon.supervisor import Supervisor
from pageferry.model.errors import PageferryError, PeerLostError, RefusedError
from pageferry.net.address import Address
from pageferry.net.caller import Caller, meet_caller, peer_name
from pageferry.net.control import ControlStream
from pageferry.net.data import tune
from pageferry.net.encryption import Credentials
from pageferry.policy.ownership import may_demand
from pageferry.wire.messages import (
    Abort,
    Aborted,
    Attach,
    Hello,
    Message,
    Query,
    QueryReply,
    Refuse,
)
from pageferry.wire.session import Exchange, Role

log = logging.getLogger(__name__)

FIRST_MESSAGE_S: Final = 5.0
"""How long a stranger may take for TLS and its first message: a few small packets."""

ANSWER_S: Final = 5.0
"""How long a source may take to read an answer that the daemon itself gives: one small packet."""

MAX_STRANGERS: Final = 64
"""Connections whose first message is still to come, each with a TLS session of some 100 KiB."""

MAX_QUERIES: Final = 16
"""Connections that ask a question, at once."""

DEMAND_S: Final = 5.0
"""How long a source may take to ask for its guest back, once it has its answer."""

MAX_DEMANDS: Final = 16
"""Connections that may do so, at once; further ones end with the answer, and ask anew."""


async def open_listeners(
    address: Address, setting: str = "listen in [daemon]"
) -> list[trio.SocketListener]:
    """Listen on *address*, which *setting* says. Raises RefusedError."""
    try:
        return await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as error:
        raise RefusedError(
            f"cannot listen on {address}: {error.strerror or error}",
            guest_state="",
            advice=f"stop what listens there, or set {setting} to another address",
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
        self._strangers: dict[int, trio.CancelScope] = {}
        self._callers = 0
        self._queries = 0
        self._demands = 0
        self.credentials = Credentials(config.encryption.directory, Side.SERVER)

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        """Accept connections for ever. Closes the listeners when cancelled."""
        await trio.serve_listeners(self.handle, listeners)

    async def handle(self, stream: trio.SocketStream) -> None:
        """One connection, up to where somebody else takes it over. Closes *stream*."""
        peer = peer_name(stream)
        try:
            caller = await self._caller(stream)
            if caller is None:
                return
            try:
                await self._dispatch(caller)
            finally:
                await caller.aclose()
        except PageferryError as error:
            log.warning("connection from %s: %s; %s", peer, error, error.advice)
        except OSError as error:
            log.debug("connection from %s: %s", peer, error)
        except Exception:
            log.exception("connection from %s: dropped", peer)

    async def _caller(self, stream: trio.SocketStream) -> Caller | None:
        """Who it is and what it wants; None when it had to go for another stranger."""
        if len(self._strangers) >= MAX_STRANGERS:
            log.warning("%d connections have yet to say what they want", MAX_STRANGERS)
            oldest = next(iter(self._strangers))
            self._strangers.pop(oldest).cancel()
        self._callers += 1
        number = self._callers
        with trio.CancelScope() as scope:
            self._strangers[number] = scope
            try:
                return await meet_caller(
                    stream, self._config.encryption, self.credentials, self._first_message_s
                )
            finally:
                self._strangers.pop(number, None)
        return None

    async def _dispatch(self, caller: Caller) -> None:
        if isinstance(caller.message, Hello):
            await self._hello(caller, caller.message)
        elif isinstance(caller.message, Attach):
            await self._attach(caller, caller.message)
        elif isinstance(caller.message, Query):
            await self._query(caller, caller.message)

    async def _hello(self, caller: Caller, hello: Hello) -> None:
        who = f"{caller.peer} ({caller.certificate})" if caller.certificate else caller.peer
        log.info("%s: %s brings guest %r", hello.migration_id, who, hello.guest)
        try:
            await self._supervisor.receive_guest(hello, caller)
        except RefusedError as error:
            log.warning("%s: refused: %s", hello.migration_id, error)
            await self._say_last(caller, Refuse(message=error.message, advice=error.advice))

    async def _say_last(self, caller: Caller, answer: Message) -> None:
        """Answer the first message of a connection that ends with the answer."""
        with trio.move_on_after(ANSWER_S):
            control = await self._say(caller, answer)
            await control.aclose()

    @staticmethod
    async def _say(caller: Caller, answer: Message) -> ControlStream:
        exchange = Exchange(Role.DESTINATION)
        exchange.receive(caller.message)
        control = ControlStream(caller.stream, exchange)
        await control.send(answer)
        return control

    async def _attach(self, caller: Caller, attach: Attach) -> None:
        # trio's sockets are non-blocking, and that belongs to what both descriptors share; the
        # threads of the worker block.
        self._supervisor.check_attach(attach, caller.certificate)
        with socket.socket(fileno=caller.hand_over()) as data:
            tune(data)
            data.setblocking(True)
            await self._supervisor.attach(attach, data.fileno(), caller.second_session)

    async def _query(self, caller: Caller, query: Query) -> None:
        if self._queries >= MAX_QUERIES:
            log.warning("%d queries at once; that of %s dropped", MAX_QUERIES, caller.peer)
            return
        control: ControlStream | None = None
        self._queries += 1
        try:
            reply = await self._answer(caller, query)
            with trio.move_on_after(ANSWER_S):
                control = await self._say(caller, reply)
        finally:
            self._queries -= 1
        if control is None:
            return
        if not query.guest and may_demand(reply.phase) and self._demands < MAX_DEMANDS:
            self._demands += 1
            try:
                await self._await_demand(caller, control, query.migration_id)
            finally:
                self._demands -= 1
        with trio.move_on_after(ANSWER_S):
            await control.aclose()

    async def _answer(self, caller: Caller, query: Query) -> QueryReply:
        guest = query.guest
        if guest:
            log.info("%s asks whether guest %r could come here", caller.peer, guest)
            phase, detail = "", ""
        else:
            log.info("%s: %s asks what became of it", query.migration_id, caller.peer)
            phase, detail, guest = await trio.to_thread.run_sync(
                self._hooks.journalled_phase, self._config.state_directory, query.migration_id
            )
        if not may_ask(self._supervisor.config.peers, caller.certificate, guest):
            log.warning(
                "%s: %s (%s) may not ask: [peers] does not let it send guest %r here",
                query.migration_id,
                caller.peer,
                caller.certificate or "no certificate",
                guest,
            )
            refused = "[peers] here does not let this agent send that guest"
            return QueryReply(phase=NOT_ALLOWED, detail=refused)
        if query.guest:
            names = caller.certificate.names if caller.certificate is not None else ()
            return await room_for(self._supervisor, self._hooks, guest, names)
        return QueryReply(phase=phase, detail=detail)

    async def _await_demand(self, caller: Caller, control: ControlStream, what: str) -> None:
        """The source may ask for the guest back now; most close the connection instead."""
        message: Message | None = None
        with trio.move_on_after(DEMAND_S), contextlib.suppress(PeerLostError):
            message = await control.receive()
        if not isinstance(message, Abort):
            return
        if await give_up(self._supervisor, self._hooks, what, caller.certificate):
            with trio.move_on_after(ANSWER_S):
                await control.send(Aborted())
