"""Frames in a stream of bytes, found without a socket.

A reader of exact lengths (threads on data connections, the first message of any connection) uses
``parse_preamble`` and ``parse_payload_head``; a reader that takes what comes (the control
connection) uses ``FrameDecoder``. Either way a length is checked before anything is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

from pageferry.model.errors import RemoteProtocolError
from pageferry.wire.limits import MAX_META_BYTES, MAX_PAGES_PAYLOAD_BYTES
from pageferry.wire.messages import (
    CONTROL_TYPES,
    Message,
    decode_meta,
    encode_head,
    with_payload,
)

__all__ = [
    "PAYLOAD_HEAD_BYTES",
    "PREAMBLE_BYTES",
    "FrameDecoder",
    "check_type",
    "encode_head",
    "parse_payload_head",
    "parse_preamble",
]

PREAMBLE_BYTES = 6
"""Array of three, and the meta's length."""

PAYLOAD_HEAD_BYTES = 5
"""The payload's length."""


def parse_preamble(preamble: bytes, limit_bytes: int = MAX_META_BYTES) -> int:
    """The meta's length in bytes. Raises RemoteProtocolError for anything but a frame's
    preamble.
    """
    mark, kind, meta_bytes = struct.unpack(">BBI", preamble)
    if (mark, kind) != (0x93, 0xCE):
        raise RemoteProtocolError(
            f"the peer sent {preamble!r} where a frame begins",
            advice="check that it is a pageferryd, and that both sides use TLS or neither does",
        )
    if meta_bytes > limit_bytes:
        raise RemoteProtocolError(
            f"the peer announced a meta of {meta_bytes} bytes, more than {limit_bytes}"
        )
    return int(meta_bytes)


def parse_payload_head(head: bytes, limit_bytes: int = MAX_PAGES_PAYLOAD_BYTES) -> int:
    """The payload's length in bytes. Raises RemoteProtocolError for what is no payload's head."""
    kind, payload_bytes = struct.unpack(">BI", head)
    if kind != 0xC6:
        raise RemoteProtocolError(f"the peer sent {head!r} where a payload begins")
    if payload_bytes > limit_bytes:
        raise RemoteProtocolError(
            f"the peer announced a payload of {payload_bytes} bytes, more than {limit_bytes}"
        )
    return int(payload_bytes)


def check_type(message: Message, types: Collection[type[Message]], where: str) -> None:
    """Raise RemoteProtocolError when *message* is of none of *types*."""
    if type(message) not in types:
        raise RemoteProtocolError(f"the peer sent {message.name} {where}")


class FrameDecoder:
    """Cuts a stream into messages: feed it bytes as they come, and take messages out.

    It holds at most one frame and what was fed in one go beyond it, if messages are taken until
    there is none. *types* are the ones that may come here. After an error it repeats that error:
    what follows a broken frame has no meaning.
    """

    def __init__(self, types: Collection[type[Message]] = CONTROL_TYPES) -> None:
        self._types = types
        self._buffer = bytearray()
        self._payload_bytes = 0
        self._message: Message | None = None
        self._error: RemoteProtocolError | None = None

    @property
    def is_amid_frame(self) -> bool:
        """Whether the stream, should it end now, ends in the middle of a frame."""
        return bool(self._buffer) or self._message is not None

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take *data*, which came next in the stream."""
        self._buffer += data

    def next_frame(self) -> Message | None:
        """The next message, or None while it has not come whole. Raises RemoteProtocolError."""
        if self._error is not None:
            raise RemoteProtocolError(self._error.message, advice=self._error.advice)
        try:
            return self._next_frame()
        except RemoteProtocolError as error:
            self._error = error
            self._buffer.clear()
            raise

    def _next_frame(self) -> Message | None:
        if self._message is None:
            self._message = self._next_head()
        if self._message is None or len(self._buffer) < self._payload_bytes:
            return None
        message = with_payload(self._message, self._take(self._payload_bytes))
        self._message = None
        return message

    def _next_head(self) -> Message | None:
        """The message before its payload; ``_payload_bytes`` is then the payload's length."""
        if len(self._buffer) < PREAMBLE_BYTES:
            return None
        meta_bytes = parse_preamble(bytes(self._buffer[:PREAMBLE_BYTES]))
        head_bytes = PREAMBLE_BYTES + meta_bytes + PAYLOAD_HEAD_BYTES
        if len(self._buffer) < head_bytes:
            return None
        head = self._take(head_bytes)
        payload_bytes = parse_payload_head(head[-PAYLOAD_HEAD_BYTES:])
        message = decode_meta(head[PREAMBLE_BYTES:-PAYLOAD_HEAD_BYTES], payload_bytes)
        check_type(message, self._types, "on a connection that is not for it")
        self._payload_bytes = payload_bytes
        return message

    def _take(self, count_bytes: int) -> bytes:
        taken = bytes(self._buffer[:count_bytes])
        del self._buffer[:count_bytes]
        return taken
