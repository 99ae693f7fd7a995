"""The messages that two agents exchange, as bytes.

A message is one frame: a msgpack array of three, in fixed encodings, so that each length is known
and can be checked before anything is allocated for it::

    0x93 0xce LLLL    array of three; the meta's length L as uint32            6 bytes
    meta              L bytes: a msgpack map, "t" names the message
    0xc6 PPPP         the payload's length P as bin32                          5 bytes
    payload           P bytes, raw

Unknown keys are ignored, so that a version may add some, and one that was added so has a default
for peers that do not send it; any other missing key, or an ill-typed one, is the peer's fault.
Names on the wire are lower-case with hyphens. Only Pages, Packed and DeviceData have a payload. The
first two do not hold it: it goes from and to guest memory without passing through Python.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any, Final, get_type_hints

from pageferry.model.errors import LocalProtocolError, RemoteProtocolError
from pageferry.wire import fields
from pageferry.wire.limits import MAX_DEVICE_PAYLOAD_BYTES, MAX_PAGES_PAYLOAD_BYTES
from pageferry.wire.packing import PackingError, pack_map, unpack_map
from pageferry.wire.vocabulary import (
    Abort,
    Aborted,
    Attach,
    Barrier,
    Commit,
    CommitFailed,
    Describe,
    DeviceData,
    DeviceEnd,
    DeviceLoaded,
    DeviceReady,
    Digest,
    Hello,
    HelloReply,
    Holes,
    Message,
    Packed,
    Pages,
    Ping,
    Pong,
    PrepareDevice,
    Query,
    QueryReply,
    Ready,
    Refuse,
    RoundAck,
    RoundEnd,
    Running,
    Started,
    Verify,
    Zeros,
)

__all__ = [
    "CONTROL_TYPES",
    "DATA_TYPES",
    "FIRST_TYPES",
    "MESSAGE_TYPES",
    "Abort",
    "Aborted",
    "Attach",
    "Barrier",
    "Commit",
    "CommitFailed",
    "Describe",
    "DeviceData",
    "DeviceEnd",
    "DeviceLoaded",
    "DeviceReady",
    "Digest",
    "Hello",
    "HelloReply",
    "Holes",
    "Message",
    "Packed",
    "Pages",
    "Ping",
    "Pong",
    "PrepareDevice",
    "Query",
    "QueryReply",
    "Ready",
    "Refuse",
    "RoundAck",
    "RoundEnd",
    "Running",
    "Started",
    "Verify",
    "Zeros",
    "decode_meta",
    "encode",
    "encode_head",
    "payload_limit_bytes",
    "with_payload",
]

FIRST_TYPES: Final = frozenset({Hello, Query, Attach})
"""Messages that open a connection."""

DATA_TYPES: Final = frozenset({Pages, Packed, Zeros, Holes, Barrier})
"""Messages of a data connection after Attach."""

MESSAGE_TYPES: Final[tuple[type[Message], ...]] = tuple(Message.__subclasses__())

CONTROL_TYPES: Final = frozenset(MESSAGE_TYPES) - DATA_TYPES - {Attach}
"""Messages of the control connection."""

_PAYLOAD_LIMITS: Final[dict[type[Message], int]] = {
    Pages: MAX_PAGES_PAYLOAD_BYTES,
    Packed: MAX_PAGES_PAYLOAD_BYTES,
    DeviceData: MAX_DEVICE_PAYLOAD_BYTES,
}


def _fields_of(message_type: type[Message]) -> tuple[tuple[str, str, fields.Kind], ...]:
    """(attribute, key on the wire, kind) of each field but the payload."""
    hints = get_type_hints(message_type, include_extras=True)
    return tuple(
        (field.name, field.name.replace("_", "-"), hints[field.name].__metadata__[0])
        for field in dataclasses.fields(message_type)
        if field.name != "payload"
    )


_FIELDS: Final = {message_type: _fields_of(message_type) for message_type in MESSAGE_TYPES}
_OPTIONAL: Final = {
    message_type: frozenset(
        field.name
        for field in dataclasses.fields(message_type)
        if field.default is not dataclasses.MISSING
    )
    for message_type in MESSAGE_TYPES
}
_TYPES: Final = {message_type.name: message_type for message_type in MESSAGE_TYPES}

_HEAD = struct.Struct(">BBI")
_PAYLOAD_HEAD = struct.Struct(">BI")
_ARRAY_OF_3, _UINT32, _BIN32 = 0x93, 0xCE, 0xC6


def encode_head(message: Message, payload_bytes: int | None = None) -> bytes:
    """The frame of *message* up to its payload.

    *payload_bytes* is what the caller is about to send; left out, it is what the message says.
    Raises LocalProtocolError when the two differ, or a field holds what the peer would refuse.
    """
    meta: dict[str, object] = {"t": message.name}
    for attribute, key, kind in _FIELDS[type(message)]:
        try:
            meta[key] = kind.to_wire(getattr(message, attribute))
            kind.from_wire(meta[key])
        except (fields.FieldError, TypeError, AttributeError) as error:
            raise LocalProtocolError(f"{message.name}: {attribute}: {error}") from error
    if isinstance(message, Packed) and message.unpacked_bytes > MAX_PAGES_PAYLOAD_BYTES:
        raise LocalProtocolError(f"packed: {message.unpacked_bytes} bytes of pages are too many")
    said_bytes = message.payload_bytes
    if payload_bytes not in (None, said_bytes) or said_bytes > payload_limit_bytes(type(message)):
        raise LocalProtocolError(
            f"{message.name}: payload of {payload_bytes} bytes where it says {said_bytes},"
            f" at most {payload_limit_bytes(type(message))}"
        )
    try:
        packed = pack_map(meta)
    except PackingError as error:
        raise LocalProtocolError(f"{message.name}: {error}") from error
    head = _HEAD.pack(_ARRAY_OF_3, _UINT32, len(packed))
    return b"".join((head, packed, _PAYLOAD_HEAD.pack(_BIN32, said_bytes)))


def encode(message: Message) -> bytes:
    """The whole frame of a message of the control connection. Raises as encode_head does."""
    if isinstance(message, DeviceData):
        return encode_head(message) + message.payload
    return encode_head(message, 0)


def decode_meta(meta: bytes | memoryview, payload_bytes: int) -> Message:
    """The message that *meta* and a payload of that length make.

    The payload itself is still to come: of Pages and Packed it is ``payload_bytes`` long, which was
    checked; to DeviceData it is attached by ``with_payload``. Raises RemoteProtocolError and
    nothing else.
    """
    try:
        values = unpack_map(meta)
    except PackingError as error:
        raise RemoteProtocolError(f"the peer sent a frame that is none: {error}") from error
    message_type = _type_named(values.get("t"))
    if payload_bytes > payload_limit_bytes(message_type):
        raise RemoteProtocolError(
            f"the peer sent {message_type.name} with a payload of {payload_bytes} bytes, more than"
            f" {payload_limit_bytes(message_type)}"
        )
    message = _build(message_type, values)
    if not isinstance(message, DeviceData) and payload_bytes != message.payload_bytes:
        raise RemoteProtocolError(
            f"the peer sent {message.name} with a payload of {payload_bytes} bytes instead of"
            f" {message.payload_bytes}"
        )
    if isinstance(message, Packed) and message.unpacked_bytes > MAX_PAGES_PAYLOAD_BYTES:
        raise RemoteProtocolError(
            f"the peer sent packed pages that unpack to {message.unpacked_bytes} bytes, more than"
            f" {MAX_PAGES_PAYLOAD_BYTES}"
        )
    return message


def with_payload(message: Message, payload: bytes) -> Message:
    """*message* with the payload that came after it, where it is one that holds it."""
    return DeviceData(payload) if isinstance(message, DeviceData) else message


def payload_limit_bytes(message_type: type[Message]) -> int:
    """Longest payload of this type of message."""
    return _PAYLOAD_LIMITS.get(message_type, 0)


def _type_named(name: object) -> type[Message]:
    message_type = _TYPES.get(name) if isinstance(name, str) else None
    if message_type is None:
        raise RemoteProtocolError(
            f"the peer sent a message of a type that is not known: {name!r:.40}",
            advice="check that both agents are of the same or of neighbouring versions",
        )
    return message_type


def _build(message_type: type[Message], values: dict[str, object]) -> Message:
    arguments: dict[str, Any] = {"payload": b""} if message_type is DeviceData else {}
    for attribute, key, kind in _FIELDS[message_type]:
        if key not in values:
            if attribute in _OPTIONAL[message_type]:
                continue
            raise RemoteProtocolError(f"the peer sent {message_type.name} without {key}")
        try:
            arguments[attribute] = kind.from_wire(values[key])
        except fields.FieldError as error:
            raise RemoteProtocolError(
                f"the peer sent {message_type.name}: {key}: {error}"
            ) from error
    return message_type(**arguments)
