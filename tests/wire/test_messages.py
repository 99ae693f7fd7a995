"""Messages and their bytes."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.model.errors import LocalProtocolError, RemoteProtocolError
from pageferry.wire import limits
from pageferry.wire import messages as m
from pageferry.wire.packing import PackingError, pack_map, unpack_map
from tests.wire.strategies import all_messages, messages_of

PREAMBLE_BYTES, PAYLOAD_HEAD_BYTES = 6, 5

SCALARS: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
)
SCALARS = SCALARS | st.binary(max_size=40)
VALUES = SCALARS | st.lists(SCALARS, max_size=6)


def meta_of(head: bytes) -> bytes:
    return head[PREAMBLE_BYTES:-PAYLOAD_HEAD_BYTES]


def meta_map(message: m.Message) -> dict[str, object]:
    return unpack_map(meta_of(m.encode_head(message)))


def decode_map(values: Mapping[str, object], payload_bytes: int = 0) -> m.Message:
    packed: bytes = msgpack.packb(dict(values))
    return m.decode_meta(packed, payload_bytes)


@pytest.mark.parametrize("message_type", m.MESSAGE_TYPES, ids=lambda t: t.name)
@given(data=st.data())
@settings(max_examples=40)
def test_every_message_survives_the_wire(
    message_type: type[m.Message], data: st.DataObject
) -> None:
    message = data.draw(messages_of(message_type))
    head = m.encode_head(message)
    payload = message.payload if isinstance(message, m.DeviceData) else b""
    decoded = m.decode_meta(meta_of(head), message.payload_bytes)
    assert m.with_payload(decoded, payload) == message


def test_no_message_type_is_forgotten() -> None:
    assert len(m.MESSAGE_TYPES) == 30
    assert len({t.name for t in m.MESSAGE_TYPES}) == 30
    assert m.CONTROL_TYPES | m.DATA_TYPES | {m.Attach} == set(m.MESSAGE_TYPES)


def test_bytes_of_a_frame_are_as_documented() -> None:
    message = m.Pages(block=1, round=2, runs=[0, 2, 300, 1], cold=True)
    meta = b"\x85\xa1t\xa5pages\xa5block\x01\xa5round\x02"
    meta += b"\xa4runs\x94\x00\x02\xcd\x01\x2c\x01\xa4cold\xc3"
    expected = b"\x93\xce" + len(meta).to_bytes(4, "big") + meta
    expected += b"\xc6" + (3 * 4096).to_bytes(4, "big")
    assert m.encode_head(message) == expected


def test_packed_pages_unpack_to_no_more_than_pages_may_carry() -> None:
    most = limits.MAX_PAGES_PAYLOAD_BYTES // 4096
    fits = m.Packed(block=0, round=1, runs=[0, most], cold=False, encoding="zstd", length=9)
    assert decode_map(meta_map(fits), 9) == fits
    bomb = replace(fits, runs=[0, most + 1])
    with pytest.raises(LocalProtocolError, match="too many"):
        m.encode_head(bomb)
    with pytest.raises(RemoteProtocolError, match="unpack to"):
        decode_map({**meta_map(fits), "runs": [0, most + 1]}, 9)


def test_a_frame_is_plain_msgpack() -> None:
    parts = msgpack.unpackb(m.encode(m.DeviceData(b"state")))
    assert parts == [len(msgpack.packb({"t": "device-data"})), {"t": "device-data"}, b"state"]


@given(all_messages, st.dictionaries(st.text(max_size=20), VALUES, max_size=5))
def test_unknown_keys_are_ignored(message: m.Message, extra: dict[str, object]) -> None:
    values = meta_map(message)
    grown = {**{f"x-{key}": value for key, value in extra.items()}, **values}
    decoded = decode_map(grown, message.payload_bytes)
    assert decoded == m.with_payload(message, b"")


OPTIONAL = {
    *("wants-command-line", "command-line"),
    *("guest", "verdict", "advice", "memory-bytes", "swap-bytes", "tmpfs-bytes"),
}


def test_keys_that_a_version_was_given_later_may_be_missing() -> None:
    reply = m.HelloReply(version=2, agent="pageferry 0.1")
    values = meta_map(reply)
    assert not values.pop("wants-command-line")
    assert decode_map(values, 0) == reply


@given(all_messages, st.data())
def test_missing_key_is_the_peers_fault(message: m.Message, data: st.DataObject) -> None:
    values = meta_map(message)
    del values[data.draw(st.sampled_from(sorted(values.keys() - OPTIONAL)))]
    with pytest.raises(RemoteProtocolError):
        decode_map(values, message.payload_bytes)


@given(all_messages, VALUES, st.data())
def test_any_value_in_a_field_gives_a_message_or_the_peers_fault(
    message: m.Message, value: object, data: st.DataObject
) -> None:
    values = meta_map(message)
    values[data.draw(st.sampled_from(sorted(values)))] = value
    try:
        decoded = decode_map(values, message.payload_bytes)
    except RemoteProtocolError:
        return
    m.encode_head(decoded, None if isinstance(decoded, m.DeviceData) else message.payload_bytes)


@given(all_messages, st.data())
def test_mutated_meta_gives_a_message_or_the_peers_fault(
    message: m.Message, data: st.DataObject
) -> None:
    meta = bytearray(meta_of(m.encode_head(message)))
    for _ in range(data.draw(st.integers(1, 3))):
        meta[data.draw(st.integers(0, len(meta) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        m.decode_meta(bytes(meta), message.payload_bytes)


@given(all_messages, st.data())
def test_truncated_meta_is_the_peers_fault(message: m.Message, data: st.DataObject) -> None:
    meta = meta_of(m.encode_head(message))
    with pytest.raises(RemoteProtocolError):
        m.decode_meta(meta[: data.draw(st.integers(0, len(meta) - 1))], message.payload_bytes)


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_random_bytes_are_the_peers_fault(meta: bytes, payload_bytes: int) -> None:
    with pytest.raises(RemoteProtocolError):
        m.decode_meta(meta, payload_bytes)


@pytest.mark.parametrize("depth", [1, 100, 1000, 60_000])
def test_nested_array_headers_allocate_nothing(depth: int) -> None:
    bomb = b"\x81\xa1t" + b"\xdd\x00\x00\xff\xff" * (depth // 2) + b"\x91" * depth
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            m.decode_meta(bomb[: limits.MAX_META_BYTES], 0)
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "meta",
    [
        pytest.param(b"\x80", id="no type"),
        pytest.param(b"\x81\xa1t\xa4nope", id="unknown type"),
        pytest.param(b"\x81\xa1t\x01", id="type that is no string"),
        pytest.param(b"\x81\x01\x01", id="key that is no string"),
        pytest.param(b"\x82\xa1t\xa6commit\xa1t\xa6commit", id="key twice"),
        pytest.param(b"\x81\xa1t\xa6commit\x00", id="bytes after the map"),
        pytest.param(b"\x91\xa6commit", id="array in place of the map"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="map of 2**32 keys"),
        pytest.param(b"\x81\xa1t\xdd\xff\xff\xff\xff", id="array of 2**32 items"),
        pytest.param(b"\x81\xa1t\xdb\xff\xff\xff\xff", id="string of 2**32 bytes"),
        pytest.param(b"\x82\xa1t\xa6commit\xa1x\x81\x01\x01", id="map as value"),
        pytest.param(b"\x82\xa1t\xa6commit\xa1x\x91\x91\x01", id="array in array"),
        pytest.param(b"\x82\xa1t\xa6commit\xa1x\xd4\x05\x00", id="extension type"),
        pytest.param(b"\x82\xa1t\xa6commit\xa1x\xa2\xff\xfe", id="string that is no UTF-8"),
        pytest.param(b"\x82\xa1t\xa6commit\xa1x\xc1", id="byte that msgpack never uses"),
    ],
)
def test_peer_sends_meta_that_is_none(meta: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        m.decode_meta(meta, 0)


PAGES = m.Pages(block=0, round=1, runs=[0, 1], cold=False)


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([], id="no runs"),
        pytest.param([1], id="gap without count"),
        pytest.param([0, 0], id="empty run"),
        pytest.param([-1, 1], id="negative gap"),
        pytest.param([0, -1], id="negative count"),
        pytest.param([0, True], id="bool as count"),
        pytest.param([0, 1.0], id="float as count"),
        pytest.param([0, "1"], id="string as count"),
        pytest.param([0, None], id="nil as count"),
        pytest.param([2**48, 1], id="end beyond 2**48"),
        pytest.param([2**63, 2**63], id="sum beyond 64 bits"),
        pytest.param([0, 1] * 32_769, id="too many runs"),
        pytest.param("runs", id="string"),
        pytest.param(7, id="number"),
        pytest.param(None, id="nil"),
    ],
)
def test_peer_sends_bad_runs(runs: object) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_map({"t": "zeros", "block": 0, "round": 1, "runs": runs})


@pytest.mark.parametrize("payload_bytes", [0, 4095, 4097, 8192, 2**32 - 1])
def test_peer_sends_pages_with_payload_of_another_length(payload_bytes: int) -> None:
    with pytest.raises(RemoteProtocolError, match="payload"):
        decode_map(meta_map(PAGES), payload_bytes)


def test_peer_sends_more_pages_than_a_frame_may_hold() -> None:
    pages = limits.MAX_PAGES_PAYLOAD_BYTES // 4096
    full = {**meta_map(PAGES), "runs": [0, pages]}
    assert decode_map(full, pages * 4096).payload_bytes == limits.MAX_PAGES_PAYLOAD_BYTES
    with pytest.raises(RemoteProtocolError, match="payload"):
        decode_map({**full, "runs": [0, pages + 1]}, (pages + 1) * 4096)


@pytest.mark.parametrize("message_type", m.MESSAGE_TYPES, ids=lambda t: t.name)
@given(data=st.data())
@settings(max_examples=5)
def test_peer_sends_payload_with_message_that_has_none(
    message_type: type[m.Message], data: st.DataObject
) -> None:
    message = data.draw(messages_of(message_type))
    limit = limits.MAX_DEVICE_PAYLOAD_BYTES if message_type is m.DeviceData else 0
    with pytest.raises(RemoteProtocolError, match="payload"):
        decode_map(meta_map(message), max(limit, message.payload_bytes) + 1)


@pytest.mark.parametrize("number", [True, 1.0, "1", None, -1, 2**32, [1]])
def test_peer_sends_bad_round_number(number: object) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_map({**meta_map(PAGES), "round": number}, 4096)


@pytest.mark.parametrize("flag", [0, 1, None, "true"])
def test_peer_sends_number_for_a_flag(flag: object) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_map({**meta_map(PAGES), "cold": flag}, 4096)


DESCRIBE = m.Describe("pc-i440fx-7.2", "7.2.22", (("ram", 4096),), True, 2, False)


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param([], id="none"),
        pytest.param(["ram"], id="without length"),
        pytest.param(["ram", 4095], id="length that is no whole pages"),
        pytest.param(["ram", 0], id="empty"),
        pytest.param(["ram", -4096], id="negative length"),
        pytest.param(["ram", 2**63], id="longer than any guest"),
        pytest.param(["ram", 4096, "ram", 4096], id="named twice"),
        pytest.param(["", 4096], id="no name"),
        pytest.param(["x" * 256, 4096], id="name too long"),
        pytest.param(["ram\x1b[2J", 4096], id="escape sequence as name"),
        pytest.param([x for i in range(1025) for x in (f"b{i}", 4096)], id="too many"),
    ],
)
def test_peer_describes_impossible_blocks(blocks: object) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_map({**meta_map(DESCRIBE), "blocks": blocks})


@pytest.mark.parametrize(
    "migration_id", ["../../etc/x", "ABCDEF0123", "12ab", "a" * 65, "", "\u0967" * 8]
)
def test_peer_sends_migration_id_that_is_unfit_for_a_file_name(migration_id: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_map({"t": "query", "migration-id": migration_id})


def test_peer_sends_control_characters_to_the_terminal() -> None:
    values = {"t": "refuse", "message": "\x1b]0;gotcha\x07", "advice": ""}
    with pytest.raises(RemoteProtocolError) as caught:
        decode_map(values)
    assert "\x1b" not in str(caught.value)


def test_error_report_can_always_be_sent() -> None:
    told = m.Abort(kind="qemu", message="a\x00b\ud800c\nd" + "x" * 9999, advice="\t")
    decoded = m.decode_meta(meta_of(m.encode_head(told)), 0)
    assert isinstance(decoded, m.Abort)
    assert decoded.message.startswith("a�b�c\nd")
    assert len(decoded.message) == limits.MAX_PROSE_CHARS
    assert decoded.advice == "�"


@given(st.integers(0, 2**33), st.integers(1, 2**34))
def test_a_full_frame_of_runs_always_fits(gap: int, count: int) -> None:
    frame = m.Zeros(0, 1, [gap, count] * limits.RUNS_PER_FRAME)
    assert m.decode_meta(meta_of(m.encode_head(frame)), 0) == frame


def test_most_expensive_full_frame_of_runs_fits() -> None:
    # Most gaps of nine bytes that keep below 2**48, and all counts of five bytes.
    runs = [2**34, 2**32 - 1] * limits.RUNS_PER_FRAME
    assert len(m.encode_head(m.Holes(0, 1, runs))) < limits.MAX_META_BYTES


@pytest.mark.parametrize(
    "message",
    [
        replace(PAGES, runs=[0, 2049]),
        replace(PAGES, runs=[0, 0]),
        replace(PAGES, runs=None),  # type: ignore[arg-type]
        replace(PAGES, block=-1),
        replace(PAGES, round=0),
        m.Zeros(0, 1, [2**30, 2**30] * 32_768),
        m.DeviceData(bytes(limits.MAX_DEVICE_PAYLOAD_BYTES + 1)),
        m.Digest({}),
        m.Digest(None),  # type: ignore[arg-type]
        m.Hello(2, 1, "no hex", "guest", "agent"),
        m.Ready(b"short", 1),
    ],
    ids=lambda message: message.name,
)
def test_what_the_peer_would_refuse_is_not_sent(message: m.Message) -> None:
    with pytest.raises(LocalProtocolError):
        m.encode(message) if message.name != "pages" else m.encode_head(message)


def test_payload_of_another_length_is_not_announced() -> None:
    assert m.encode_head(PAGES, 4096) == m.encode_head(PAGES)
    with pytest.raises(LocalProtocolError):
        m.encode_head(PAGES, 8192)


def test_pages_do_not_go_over_the_control_connection() -> None:
    with pytest.raises(LocalProtocolError):
        m.encode(PAGES)


@pytest.mark.parametrize("message", [m.Ready(b"s" * 32, 2), m.Attach("ab" * 8, b"s" * 32, 1)])
def test_secret_is_not_logged(message: m.Message) -> None:
    assert "ssss" not in repr(message)
    with pytest.raises(RemoteProtocolError) as caught:
        decode_map({**meta_map(message), "token": b"s" * 31})
    assert "ssss" not in str(caught.value)


@given(st.dictionaries(st.text(max_size=9), VALUES, max_size=9))
def test_map_survives_packing(values: dict[str, object]) -> None:
    assert repr(unpack_map(pack_map(values))) == repr(values)  # repr: NaN is not equal to itself


def test_map_that_is_too_long_is_not_packed() -> None:
    with pytest.raises(PackingError):
        pack_map({"x": b"x" * limits.MAX_META_BYTES})
    with pytest.raises(PackingError):
        unpack_map(bytes(limits.MAX_META_BYTES + 1))


def test_map_of_too_many_keys_is_not_read() -> None:
    packed = msgpack.packb({str(i): i for i in range(limits.MAX_KEYS + 1)})
    with pytest.raises(PackingError):
        unpack_map(packed)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [((1, 1), 1), ((1, 9), 2), ((2, 9), 2), ((3, 9), None), ((1, 2), 2)],
)
def test_version_is_the_highest_that_both_speak(
    offered: tuple[int, int], chosen: int | None
) -> None:
    assert limits.choose_version(*offered) == chosen
