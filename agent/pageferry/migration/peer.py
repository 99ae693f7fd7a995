"""The other agent, as one side of a migration sees it: control messages in order, failures in one
place.

A receiving task routes what comes in: device state to the relay, everything else to an inbox that
the choreography reads with `expect`. The task never raises; when the peer breaks the protocol, says
Abort, or is lost, that becomes `failure`, which `expect` raises and `raise_when_failed` raises into
whatever else is going on. So the choreography decides what a failure means at the point where it
is: before the commit the guest stays at the source, after it the outcome is unknown.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from pageferry.model.errors import (
    MigrationFailedError,
    PageferryError,
    RefusedError,
    RemoteProtocolError,
)
from pageferry.net.control import ControlStream
from pageferry.wire.messages import Abort, DeviceData, DeviceEnd, DeviceLoaded, Message, Refuse

M = TypeVar("M", bound=Message)

HEARTBEAT_INTERVAL_S = 1.0

PEER_SILENCE_S = 10.0
"""How long a peer may say nothing before it counts as lost. Its event loop only coordinates
(threads move the bulk), so a second is already unusual; ten allow for a host that swaps hard."""

INBOX_MESSAGES = 16

DeviceSink = Callable[[DeviceData | DeviceEnd], Awaitable[None]]


class Peer:
    """The control connection with its receiving task. Made by `open_peer`."""

    def __init__(self, stream: ControlStream) -> None:
        self._stream = stream
        self._inbox_send, self._inbox = trio.open_memory_channel[Message](INBOX_MESSAGES)
        self._failed = trio.Event()
        self.failure: PageferryError | None = None
        self.device_sink: DeviceSink | None = None
        self.device_loaded = trio.Event()
        """Set when the destination says DeviceLoaded, which it says by itself, whatever else the
        choreography is waiting for just then."""

    @property
    def source_may_resume(self) -> bool:
        """Whether, by what was said here, the destination will never start the guest."""
        return self._stream.exchange.source_may_resume

    @property
    def version(self) -> int:
        """The protocol's version that both sides speak; the oldest one before they agreed."""
        return self._stream.exchange.version

    async def last_words(self, wait_s: float) -> PageferryError | None:
        """What the peer had to say before its connection broke, if that is noticed in time.

        A send that fails may hide an Abort or a Refuse that has arrived already.
        """
        with trio.move_on_after(wait_s):
            await self._failed.wait()
        return self.failure

    async def send(self, message: Message) -> None:
        """Send one message. Raises PeerLostError; after a cancellation the connection is
        unusable."""
        await self._stream.send(message)

    async def expect(self, kind: type[M]) -> M:
        """The next message, which must be of *kind*.

        Raises the peer's failure, RefusedError when the peer refuses, RemoteProtocolError when it
        says something else. After a cancellation no message has been lost.
        """
        try:
            message = await self._inbox.receive()
        except trio.EndOfChannel:
            assert self.failure is not None
            raise self.failure from None
        if isinstance(message, kind):
            return message
        raise self._unexpected(message, kind.__name__)

    async def receive(self) -> Message:
        """The next message of any kind but device state. Raises as `expect` does."""
        return await self.expect(Message)

    async def raise_when_failed(self) -> None:
        """Wait until the peer has failed and raise that failure; run this beside other work."""
        await self._failed.wait()
        assert self.failure is not None
        raise self.failure

    def _unexpected(self, message: Message, wanted: str) -> PageferryError:
        if isinstance(message, Refuse):
            return RefusedError(message.message, advice=message.advice)
        return RemoteProtocolError(
            f"the other agent said {type(message).__name__} where {wanted} was due",
            advice="check that both hosts run compatible versions of pageferry",
        )

    async def _receive_all(self) -> None:
        try:
            while True:
                message = await self._stream.receive()
                if isinstance(message, Abort):
                    raise MigrationFailedError(
                        f"the other agent gave up: {message.message}",
                        advice=message.advice or "see the other agent's log, and migrate again",
                    )
                if isinstance(message, DeviceLoaded):
                    self.device_loaded.set()
                elif isinstance(message, DeviceData | DeviceEnd):
                    if self.device_sink is None:
                        raise RemoteProtocolError("device state came before it was asked for")
                    await self.device_sink(message)
                else:
                    await self._inbox_send.send(message)
        except PageferryError as error:
            self._fail(error)
        except trio.ClosedResourceError:
            # The silence was taken for the end; what is said after it comes too late.
            assert self.failure is not None

    async def _beat(self) -> None:
        try:
            await self._stream.heartbeat(HEARTBEAT_INTERVAL_S, PEER_SILENCE_S)
        except PageferryError as error:
            self._fail(error)

    def _fail(self, error: PageferryError) -> None:
        if self.failure is None:
            self.failure = error
            self._failed.set()
            self._inbox_send.close()


@asynccontextmanager
async def open_peer(stream: ControlStream, *, heartbeat: bool = True) -> AsyncIterator[Peer]:
    """Run the receiving task and the heartbeat on *stream* for as long as the block lasts.

    Also when the block is being cancelled: it then has to hear the peer's last word. What the block
    raises comes out as it is.
    """
    peer = Peer(stream)
    raised: Exception | None = None
    tasks = [peer._receive_all, peer._beat] if heartbeat else [peer._receive_all]
    until_left = [trio.CancelScope(shield=True) for _task in tasks]
    async with trio.open_nursery() as nursery:
        for task, scope in zip(tasks, until_left, strict=True):
            nursery.start_soon(_within, scope, task)
        try:
            yield peer
        except Exception as error:  # noqa: BLE001 - the nursery would wrap it in a group
            raised = error
        finally:
            for scope in until_left:
                scope.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await stream.aclose()
    if raised is not None:
        raise raised


async def _within(scope: trio.CancelScope, task: Callable[[], Awaitable[None]]) -> None:
    with scope:
        await task()
