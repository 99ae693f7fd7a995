"""The cutting of QMP's byte stream into texts, and what is refused as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.control.jsonstream import JsonSplitter, TooLongError, encode, parse_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=4)


def split(*pieces: bytes, limit_bytes: int = 1000) -> list[bytes]:
    splitter = JsonSplitter(limit_bytes)
    return [text for piece in pieces for text in splitter.feed(piece)]


@given(st.lists(OBJECTS, max_size=4), st.sampled_from([b"", b"\n", b" \r\n"]), st.data())
def test_objects_come_out_however_the_stream_is_cut(
    objects: list[dict[str, Any]], separator: bytes, data: st.DataObject
) -> None:
    stream = b"".join(
        json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode() + separator
        for value in objects
    )
    splitter = JsonSplitter(1 << 20)
    texts = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        texts += list(splitter.feed(stream[:cut]))
        stream = stream[cut:]
    assert [parse_object(text) for text in texts] == objects


def test_text_needs_no_newline() -> None:
    assert split(b'{"a": "}"}{"b": 1}') == [b'{"a": "}"}', b'{"b": 1}']


def test_escaped_quote_split_from_its_backslash() -> None:
    assert split(b'{"a": "\\', b'"}"}') == [b'{"a": "\\"}"}']


def test_words_are_a_text_up_to_the_end_of_their_line() -> None:
    assert split(b'help\n{"a": 1}') == [b"help\n", b'{"a": 1}']


def test_forgotten_quote_ends_with_its_line() -> None:
    assert split(b'{"execute": "x}\n{"a": 1}\n') == [b'{"execute": "x}\n', b'{"a": 1}']


def test_wrong_bracket_does_not_swallow_the_next_text() -> None:
    assert split(b'{"a": ]{"a": 1}') == [b'{"a": ]', b'{"a": 1}']


@pytest.mark.parametrize("begun", [b'{"a": {', b'{"a": "b', b"", b"{[{"])
def test_0xff_drops_what_was_begun(begun: bytes) -> None:
    assert split(begun + b'\xff\n{"a": 1}') == [b'{"a": 1}']


def test_many_0xff_do_not_recurse() -> None:
    assert split(b"{\xff" * 20_000 + b"{}", limit_bytes=1 << 20) == [b"{}"]


def test_text_over_the_limit_ends_the_stream_after_the_texts_before_it() -> None:
    splitter = JsonSplitter(100)
    texts: list[bytes] = []
    with pytest.raises(TooLongError):
        texts.extend(_collect(splitter, texts, b'{"a": 1}{"b": 2}{"c": "' + b"x" * 200))
    assert texts == [b'{"a": 1}', b'{"b": 2}']


def _collect(splitter: JsonSplitter, texts: list[bytes], data: bytes) -> list[bytes]:
    for text in splitter.feed(data):
        texts.append(text)
    return []


@pytest.mark.parametrize(
    "text",
    [
        b"help",
        b"[1]",
        b'{"a": }',
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\xc3"}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_object_is_refused_with_a_message(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_object(text)


@given(OBJECTS)
def test_encoded_objects_are_one_line_each(value: dict[str, Any]) -> None:
    line = encode(value)
    assert line.endswith(b"\r\n")
    assert b"\n" not in line[:-2]
    assert parse_object(line) == value
