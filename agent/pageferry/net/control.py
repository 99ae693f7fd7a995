"""The control connection: messages over a stream, plain or TLS.

Rules:

- What is to be said is put in a queue of bytes in one go, and counts as said from then on. A task
  that is cancelled while it waits for the socket leaves the rest in the queue, and whoever sends
  next sends it first. So a cancellation never cuts a frame in two, and Abort can always follow.
- One task receives. It answers pings itself, and must keep on receiving: silence is noticed by it.
- ``read_first_message`` takes no byte more than its frame, since the descriptor then goes to the
  process that serves this migration, and what was read ahead would be lost to it.
"""

from __future__ import annotations

import math

import trio

from pageferry.model.errors import PeerLostError
from pageferry.net.streams import Stream, plain_or_same
from pageferry.wire.frames import (
    PAYLOAD_HEAD_BYTES,
    PREAMBLE_BYTES,
    FrameDecoder,
    check_type,
    parse_payload_head,
    parse_preamble,
)
from pageferry.wire.limits import MAX_FIRST_META_BYTES
from pageferry.wire.messages import FIRST_TYPES, Message, Ping, Pong, decode_meta, encode
from pageferry.wire.session import PUMPED_TYPES, Exchange

RECEIVE_BYTES = 256 * 1024
"""Most that is taken from the socket in one go: as much as a relay of device state sends in one."""

PONG_PATIENCE_S = 0.5
"""How long receiving waits for room for a Pong. If two sides both waited for the other to read
before they read on, neither would; what is left in the queue goes out with the next message or
beat."""


class ControlStream:
    """The control connection of one migration, on either side.

    Any number of tasks may send, one may receive. The exchange judges every message, in the order
    in which it is sent or received; pass one that has seen what was said before (by the daemon that
    read Hello, say).
    """

    def __init__(self, stream: trio.SocketStream | Stream, exchange: Exchange) -> None:
        self.exchange = exchange
        self._stream = plain_or_same(stream)
        self._decoder = FrameDecoder()
        self._queue = bytearray()
        self._flush_lock = trio.Lock()
        self._receiving = trio.Lock()
        self._ping_sequence = 0
        self._heard_at_s = -math.inf

    async def send(self, message: Message) -> None:
        """Say *message*. Device state and heartbeats are dropped when the exchange is over.

        Raises LocalProtocolError when it may not be said here, and has then sent nothing;
        PeerLostError when the connection is gone. After a cancellation the message counts as said:
        it may have been sent, or goes out before anything that is sent after it.
        """
        if self.exchange.is_over and type(message) in PUMPED_TYPES:
            await trio.lowlevel.checkpoint()
            return
        self._enqueue(message)
        await self._flush()

    async def receive(self) -> Message:
        """The next message but Ping and Pong.

        Raises RemoteProtocolError when the peer breaks the protocol and PeerLostError when the
        connection ends; both are final. After a cancellation nothing has been lost.
        """
        if self._receiving.locked():
            raise trio.BusyResourceError("another task is receiving on this control connection")
        async with self._receiving:
            while True:
                message = await self._next_message()
                self.exchange.receive(message)
                if isinstance(message, Ping):
                    await self._answer(message)
                elif not isinstance(message, Pong):
                    return message

    async def heartbeat(self, interval_s: float, silence_s: float) -> None:
        """Ping every *interval_s* as soon as the protocol allows it; returns when all is said.

        Raises PeerLostError when nothing was heard for *silence_s*, counted from the first ping, or
        when the connection is gone. To be run beside a task that receives all the time.
        """
        silent_since_s = math.inf
        while not self.exchange.is_over:
            ping = Ping(self._ping_sequence)
            if self.exchange.may_send(ping):
                silent_since_s = min(silent_since_s, trio.current_time())
                self._ping_sequence += 1
                self._enqueue(ping)
            with trio.move_on_after(interval_s):
                await self._flush()  # gives way to silence when the peer does not read either
                await trio.sleep_forever()
            silent_for_s = trio.current_time() - max(silent_since_s, self._heard_at_s)
            if silent_for_s > silence_s and not self.exchange.is_over:
                raise PeerLostError(
                    f"the other agent has said nothing for {silent_for_s:.0f} seconds",
                    advice="check the network and the agent on the other host",
                )

    async def aclose(self) -> None:
        """Close the connection. Closes it also when cancelled; what is in the queue is lost."""
        await self._stream.aclose()

    def _enqueue(self, message: Message) -> None:
        frame = encode(message)
        self.exchange.send(message)
        self._queue += frame

    async def _flush(self) -> None:
        """Send the queue. Whoever is cancelled here leaves a queue that begins where it got to."""
        async with self._flush_lock:
            await trio.lowlevel.checkpoint()
            while self._queue:
                try:
                    sent_bytes = await self._stream.send_some(bytes(self._queue[:RECEIVE_BYTES]))
                except (OSError, trio.ClosedResourceError) as error:
                    raise _lost(str(error)) from error
                del self._queue[:sent_bytes]

    async def _answer(self, ping: Ping) -> None:
        pong = Pong(ping.sequence)
        if not self.exchange.may_send(pong):
            return  # all is said; the ping crossed with it
        self._enqueue(pong)
        with trio.move_on_after(PONG_PATIENCE_S):
            await self._flush()

    async def _next_message(self) -> Message:
        while (message := self._decoder.next_frame()) is None:
            try:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise _lost(str(error.__cause__ or error)) from error
            if not data:
                raise _lost("the other agent closed it")
            self._heard_at_s = trio.current_time()
            self._decoder.feed(data)
        return message


async def read_first_message(stream: trio.SocketStream | Stream, timeout_s: float) -> Message:
    """The first message of a connection that someone unknown has made: Hello, Query or Attach.

    Reads exactly this one frame. Raises RemoteProtocolError for anything else, and PeerLostError
    when the connection ends or the message has not come whole after *timeout_s*. After a failure
    or a cancellation the connection is of no more use.
    """
    try:
        with trio.fail_after(timeout_s):
            source = plain_or_same(stream)
            preamble = await _receive_exactly(source, PREAMBLE_BYTES)
            meta_bytes = parse_preamble(preamble, MAX_FIRST_META_BYTES)
            rest = await _receive_exactly(source, meta_bytes + PAYLOAD_HEAD_BYTES)
    except trio.TooSlowError as error:
        raise _lost(f"no whole message came within {timeout_s:g} seconds") from error
    payload_bytes = parse_payload_head(rest[-PAYLOAD_HEAD_BYTES:], limit_bytes=0)
    message = decode_meta(rest[:-PAYLOAD_HEAD_BYTES], payload_bytes)
    check_type(message, FIRST_TYPES, "as the first message of a connection")
    return message


async def _receive_exactly(stream: Stream, count_bytes: int) -> bytes:
    data = b""
    while len(data) < count_bytes:
        try:
            piece = await stream.receive_some(count_bytes - len(data))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _lost(str(error.__cause__ or error)) from error
        if not piece:
            raise _lost("it ended within the first message")
        data += piece
    return data


def _lost(why: str) -> PeerLostError:
    return PeerLostError(
        f"the connection to the other agent is gone: {why}",
        advice="check the network and the agent on the other host",
    )
