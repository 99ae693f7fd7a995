"""Frames in a stream of bytes."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.model.errors import RemoteProtocolError
from pageferry.wire import limits
from pageferry.wire import messages as m
from pageferry.wire.frames import FrameDecoder, parse_payload_head, parse_preamble
from tests.wire.strategies import control_messages


def decode_all(decoder: FrameDecoder) -> list[m.Message]:
    decoded = []
    while (message := decoder.next_frame()) is not None:
        decoded.append(message)
    return decoded


@given(st.lists(control_messages, max_size=5), st.data())
@settings(max_examples=60)
def test_stream_cut_anywhere_gives_the_same_messages(
    said: list[m.Message], data: st.DataObject
) -> None:
    stream = b"".join(map(m.encode, said))
    decoder = FrameDecoder()
    heard: list[m.Message] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        decoder.feed(stream[:cut])
        stream = stream[cut:]
        heard += decode_all(decoder)
    assert heard == said
    assert not decoder.is_amid_frame


@given(control_messages)
@settings(max_examples=40)
def test_byte_by_byte(message: m.Message) -> None:
    decoder = FrameDecoder()
    frame = m.encode(message)
    for byte in frame[:-1]:
        decoder.feed(bytes([byte]))
        assert decoder.next_frame() is None
    assert decoder.is_amid_frame
    decoder.feed(frame[-1:])
    assert decode_all(decoder) == [message]


@given(st.lists(control_messages, min_size=1, max_size=3), st.data())
def test_mutated_stream_gives_messages_or_the_peers_fault(
    said: list[m.Message], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(map(m.encode, said)))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    decoder = FrameDecoder()
    decoder.feed(stream)
    with contextlib.suppress(RemoteProtocolError):
        decode_all(decoder)


def test_stream_that_ends_between_head_and_payload_ends_amid_a_frame() -> None:
    decoder = FrameDecoder()
    decoder.feed(m.encode(m.DeviceData(b"x"))[:-1])
    assert decoder.next_frame() is None
    assert decoder.is_amid_frame


def test_broken_stream_stays_broken() -> None:
    decoder = FrameDecoder()
    decoder.feed(b"\x92" + m.encode(m.Commit()))
    with pytest.raises(RemoteProtocolError) as first:
        decoder.next_frame()
    decoder.feed(m.encode(m.Commit()))
    with pytest.raises(RemoteProtocolError) as again:
        decoder.next_frame()
    assert again.value.message == first.value.message


@given(st.binary(max_size=200))
def test_random_stream_gives_nothing_or_the_peers_fault(stream: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(stream)
    with contextlib.suppress(RemoteProtocolError):
        assert decode_all(decoder) == []


def test_peer_speaks_tls_to_a_plain_port() -> None:
    decoder = FrameDecoder()
    decoder.feed(bytes.fromhex("160301020001000001fc"))
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.next_frame()
    assert "TLS" in caught.value.advice


@pytest.mark.parametrize("length", [limits.MAX_META_BYTES + 1, 2**32 - 1])
def test_peer_announces_meta_beyond_the_limit(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=str(length)):
        parse_preamble(b"\x93\xce" + length.to_bytes(4, "big"))


@pytest.mark.parametrize("length", [limits.MAX_PAGES_PAYLOAD_BYTES + 1, 2**32 - 1])
def test_peer_announces_payload_beyond_the_limit(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=str(length)):
        parse_payload_head(b"\xc6" + length.to_bytes(4, "big"))


@pytest.mark.parametrize("preamble", [b"\x92\xce\0\0\0\0", b"\x93\xcd\0\0\0\0", b"\0" * 6])
def test_peer_begins_a_frame_with_something_else(preamble: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_preamble(preamble)


@pytest.mark.parametrize("head", [b"\xc5\0\0\0\0", b"\xdb\0\0\0\0", b"\0" * 5])
def test_peer_begins_a_payload_with_something_else(head: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_payload_head(head)


@pytest.mark.parametrize(
    "message",
    [
        m.Pages(0, 1, [0, 1], False),
        m.Zeros(0, 1, [0, 1]),
        m.Holes(0, 1, [0, 1]),
        m.Barrier(1, 0),
        m.Attach("ab" * 8, bytes(32), 0),
    ],
    ids=lambda message: message.name,
)
def test_peer_sends_data_frames_on_the_control_connection(message: m.Message) -> None:
    decoder = FrameDecoder()
    decoder.feed(m.encode_head(message))  # refused before a byte of payload is awaited
    with pytest.raises(RemoteProtocolError):
        decoder.next_frame()


def test_peer_sends_device_data_beyond_the_limit() -> None:
    frame = m.encode(m.DeviceData(b"x"))
    announced = frame[:-5] + (limits.MAX_DEVICE_PAYLOAD_BYTES + 1).to_bytes(4, "big")
    decoder = FrameDecoder()
    decoder.feed(announced)
    with pytest.raises(RemoteProtocolError):
        decoder.next_frame()


HOSTILE_METAS = {
    "an array that announces 4 Gi items": b"\x82\xa1t\xa4ping\xa1x\xdd\xff\xff\xff\xff",
    "a map that announces 4 Gi pairs": b"\xdf\xff\xff\xff\xff",
    "a text that announces 4 GiB": b"\x82\xa1t\xa4ping\xa1x\xdb\xff\xff\xff\xff",
    "nested arrays": b"\x82\xa1t\xa4ping\xa1x" + b"\xdd\x00\x00\xff\xff" * 52000,
    "as many items as fit": b"\x82\xa1t\xa4ping\xa1x\xdd\x00\x03\xff\x00" + b"\xc0" * 0x3FF00,
    "maps in an array": b"\x82\xa1t\xa4ping\xa1x\xdd\x00\x00\xff\x00" + b"\x80" * 0xFF00,
    "an extension": b"\x82\xa1t\xa4ping\xa1x\xc9\x00\x03\xff\x00\x01" + bytes(0x3FF00),
    "as many numbers as fit": b"\x83\xa1t\xa4ping\xa8sequence\x01\xa1x\xdd\x00\x00\xe3\x8e"
    + b"\xce\x7f\xff\xff\xff" * 0xCCCC,
}


@pytest.mark.parametrize("name", HOSTILE_METAS)
def test_peer_cannot_make_the_decoder_grow(name: str) -> None:
    """What is allocated is in proportion to what was sent, whatever that announces."""
    meta = HOSTILE_METAS[name]
    frame = b"\x93\xce" + len(meta).to_bytes(4, "big") + meta + b"\xc6\x00\x00\x00\x00"
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        decoder.feed(frame)
        with contextlib.suppress(RemoteProtocolError):
            decoder.next_frame()
        _now, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 * len(frame) + (64 << 10), peak_bytes


@pytest.mark.parametrize("announced", [2**32 - 1, 2**31, 256 * 1024 + 1])
def test_peer_announces_without_sending(announced: int) -> None:
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        decoder.feed(b"\x93\xce" + announced.to_bytes(4, "big"))
        with pytest.raises(RemoteProtocolError):
            decoder.next_frame()
        _now, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 << 10, peak_bytes
