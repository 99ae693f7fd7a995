"""What is fuzzed: each takes any bytes, and raises only when the code is wrong.

The errors that a parser is meant to raise are caught; what comes out is checked for what must hold
of it. No fuzzer is needed to run them: a corpus can be replayed by calling them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from pageferry.control.jsonstream import JsonSplitter, TooLongError, parse_object
from pageferry.daemon.config import ConfigError, parse_config
from pageferry.kernel.pageset import Runs
from pageferry.migration.journal import JournalError, _state
from pageferry.migration.journalled import UnfitNotesError
from pageferry.migration.leftover import DestinationLeftover, SourceLeftover
from pageferry.model.errors import LocalProtocolError, RemoteProtocolError
from pageferry.net.encryption import Encryption
from pageferry.wire import messages as m
from pageferry.wire.frames import (
    PAYLOAD_HEAD_BYTES,
    PREAMBLE_BYTES,
    FrameDecoder,
    check_type,
    encode_head,
    parse_payload_head,
    parse_preamble,
)
from pageferry.wire.limits import MAX_FIRST_META_BYTES, MAX_META_BYTES
from pageferry.wire.messages import (
    DATA_TYPES,
    FIRST_TYPES,
    Holes,
    Message,
    Pages,
    Zeros,
    decode_meta,
    encode,
)
from pageferry.wire.session import Exchange, Role
from tests.wire.pair import HELLO, WHOLE, S

BLOCK_PAGES: Final = 1000

_ANSWERS: Final[tuple[Message, ...]] = (
    m.HelloReply(1, "fuzz"),
    m.Ready(bytes(32), 2),
    m.Started(),
    *(m.RoundAck(number, 0, 0, 0, 0) for number in range(1, 6)),
    m.DeviceReady(),
    m.DeviceEnd(),
    m.DeviceLoaded(),
    m.Digest({"ram": "ab" * 32}),
    m.Running("running"),
    m.QueryReply("loaded", ""),
)
"""In the order in which a destination says them."""


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """*data* as a stream comes: in pieces of *size* bytes."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def fuzz_control(data: bytes) -> None:
    """The control connection at the destination: frames, messages, and their order. The first byte
    says in which pieces the rest comes."""
    _listen(data, Exchange(Role.DESTINATION), _ANSWERS)


def fuzz_answers(data: bytes) -> None:
    """The same at the source, where the second byte says whether it migrates or asks."""
    exchange = Exchange(Role.SOURCE)
    first: m.Message = m.Query("ab" * 8) if data[1:2] == b"?" else HELLO
    exchange.send(first)
    _listen(data[:1] + data[2:], exchange, tuple(each for who, each in WHOLE if who is S))


def _listen(data: bytes, exchange: Exchange, answers: tuple[Message, ...]) -> None:
    """Hear *data*, and say of *answers* whatever may be said."""
    if not data:
        return
    decoder = FrameDecoder()
    try:
        for piece in pieces(data[1:], data[0] + 1):
            decoder.feed(piece)
            while (message := decoder.next_frame()) is not None:
                _survives(message)
                exchange.receive(message)
                _answer(exchange, answers)
    except RemoteProtocolError:
        return
    assert len(decoder._buffer) <= MAX_META_BYTES + (1 << 20) + 300


def _survives(message: Message) -> None:
    """What was taken can be said, and is the same when it is heard."""
    again = FrameDecoder({type(message)})
    again.feed(encode(message))
    assert again.next_frame() == message


def _answer(exchange: Exchange, answers: tuple[Message, ...]) -> None:
    """Say what is said next as soon as it may be, so that the peer gets further."""
    for answer in answers:
        if exchange.may_send(answer):
            try:
                exchange.send(answer)
            except LocalProtocolError as error:
                raise AssertionError("may_send and send disagree") from error
            return


def fuzz_data(data: bytes) -> None:
    """A data connection: heads of frames, and their runs against a RAM block."""
    head, rest = data[:PREAMBLE_BYTES], data[PREAMBLE_BYTES:]
    try:
        if len(head) < PREAMBLE_BYTES:
            return
        meta_bytes = parse_preamble(head)
        assert meta_bytes <= MAX_META_BYTES
        tail = rest[meta_bytes : meta_bytes + PAYLOAD_HEAD_BYTES]
        payload_bytes = parse_payload_head(tail) if len(tail) == PAYLOAD_HEAD_BYTES else 0
        message = decode_meta(rest[:meta_bytes], payload_bytes)
        check_type(message, DATA_TYPES, "here")
    except RemoteProtocolError:
        return
    assert decode_meta(_meta_of(message, payload_bytes), payload_bytes) == message
    if isinstance(message, Pages | Zeros | Holes):
        try:
            runs = Runs.from_list(list(message.runs), BLOCK_PAGES)
        except ValueError:
            return
        # Runs that touch become one, but no page is lost, and none lies outside.
        assert runs.pages == sum(message.runs[1::2])
        assert sum(runs.to_list()) <= BLOCK_PAGES


def _meta_of(message: Message, payload_bytes: int) -> bytes:
    return encode_head(message, payload_bytes)[PREAMBLE_BYTES:-PAYLOAD_HEAD_BYTES]


def fuzz_first(data: bytes) -> None:
    """The meta of a first message, from someone unknown."""
    try:
        message = decode_meta(data[:MAX_FIRST_META_BYTES], 0)
        check_type(message, FIRST_TYPES, "here")
    except RemoteProtocolError:
        return
    _survives(message)


def fuzz_jsonstream(data: bytes) -> None:
    """The control socket's stream: cut anywhere, it gives the same texts."""
    if not data:
        return
    limit = 1 << 12
    whole, whole_is_too_long = _texts([data[1:]], limit)
    cut, cut_is_too_long = _texts(list(pieces(data[1:], data[0] + 1)), limit)
    # How much is fed at once decides when the limit is noticed, but not what came before.
    shorter = min(len(whole), len(cut))
    assert whole[:shorter] == cut[:shorter]
    if not (whole_is_too_long or cut_is_too_long):
        assert whole == cut
    for text in whole:
        try:
            value = parse_object(text)
        except ValueError:
            continue
        assert isinstance(value, dict)


def _texts(parts: list[bytes], limit: int) -> tuple[list[bytes], bool]:
    splitter, texts = JsonSplitter(limit), list[bytes]()
    try:
        for part in parts:
            texts.extend(splitter.feed(part))
    except TooLongError:
        return texts, True
    return texts, False


def fuzz_journal(data: bytes) -> None:
    """A journal as it lies on disk, or, for an even first byte, lines with their checksums right:
    what a program with a bug would write."""
    if not data:
        return
    role = "source" if data[0] & 2 else "destination"
    path = Path(f"/nowhere/0123456789abcdef.{role}.journal")
    content = data[1:]
    if not data[0] & 1:
        content = b"".join(_with_checksum(line) for line in content.split(b"\n"))
    try:
        state = _state(content, path)
    except JournalError:
        return
    if state is None:
        return
    assert state.role == role
    assert _state(content + b'{"torn', path) == state, "a torn line changes nothing"
    try:
        # What recovery takes out of the notes, before it does anything.
        if role == "source":
            SourceLeftover(state, None, Encryption())  # type: ignore[arg-type]
        else:
            DestinationLeftover(state, None)  # type: ignore[arg-type]
    except UnfitNotesError:
        return


def _with_checksum(line: bytes) -> bytes:
    body = line if line.endswith(b"}") else line + b"}"
    return body[:-1] + b',"crc32":"%08x"}\n' % zlib.crc32(body)


def fuzz_config(data: bytes) -> None:
    """The configuration file."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    try:
        parse_config(text, "pageferryd.toml")
    except ConfigError as caught:
        error = caught
    else:
        return
    assert error.message
    assert error.advice


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "control": fuzz_control,
    "answers": fuzz_answers,
    "data": fuzz_data,
    "first": fuzz_first,
    "jsonstream": fuzz_jsonstream,
    "journal": fuzz_journal,
    "config": fuzz_config,
}
