"""JSON texts in a stream of bytes, as QMP has them. No socket here.

QMP puts no frame around its objects. A text ends where its brackets balance, with or without a
newline: qemu.qmp sends none, people at a terminal and most libraries do. What a reader must guard
against is input that never balances, so

- a text longer than the limit ends the connection (`TooLongError`): there is no telling where the
  next one would begin;
- a newline inside a string is an error by itself (JSON has none there), and the text is given up
  there, so that a forgotten quote does not swallow the commands that follow;
- the byte 0xFF, which occurs in no UTF-8 text, drops what was begun, as in QEMU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

MAX_TEXT_BYTES = 1 << 20
"""Longest text taken from a client. The longest command is a few hundred bytes."""

_OUTSIDE = re.compile(rb'[{}\[\]"\xff]')
_INSIDE_STRING = re.compile(rb'["\\\n\xff]')
_BLANK = b" \t\r\n"


class TooLongError(Exception):
    """The peer sent a text longer than the limit; the stream cannot be used any more."""


class JsonSplitter:
    """Cuts a stream into texts. Texts are not parsed here: `parse_object` does, and may refuse."""

    def __init__(self, limit_bytes: int = MAX_TEXT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._begin()

    def _begin(self) -> None:
        self._position = 0
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take in *data*; yield each text that it completes.

        Raises TooLongError once a text passes the limit, after the texts before it were yielded.
        """
        self._buffer += data
        while (text := self._next()) is not None:
            yield text
        if len(self._buffer) > self._limit_bytes:
            raise TooLongError(f"a message longer than {self._limit_bytes} bytes")

    def _next(self) -> bytes | None:
        while True:
            if not self._depth:
                self._skip_blanks()
                if self._buffer and self._buffer[0] not in b"{[":
                    return self._take_line()
            if self._position >= len(self._buffer):
                return None
            end = self._scan_string() if self._in_string else self._scan_structure()
            if end is not None:
                return self._cut(end)

    def _skip_blanks(self) -> None:
        stripped = self._buffer.lstrip(_BLANK + b"\xff")
        del self._buffer[: len(self._buffer) - len(stripped)]

    def _take_line(self) -> bytes | None:
        """Something that is no object: it goes up to the end of its line."""
        end = self._buffer.find(b"\n")
        return None if end < 0 else self._cut(end + 1)

    def _scan_structure(self) -> int | None:
        match = _OUTSIDE.search(self._buffer, self._position)
        if match is None:
            self._position = len(self._buffer)
            return None
        self._position = match.end()
        byte = match[0]
        if byte == b'"':
            self._in_string = True
        elif byte in b"{[":
            self._depth += 1
        elif byte in b"}]":
            self._depth -= 1
            if self._depth == 0:
                return self._position
        else:
            self._drop()
        return None

    def _scan_string(self) -> int | None:
        match = _INSIDE_STRING.search(self._buffer, self._position)
        if match is None:
            self._position = len(self._buffer)
            return None
        byte = match[0]
        if byte == b"\\":
            # The escaped byte may not be here yet; a position past the end waits for it.
            self._position = match.end() + 1
            return None
        self._position = match.end()
        if byte == b"\n":
            return self._position
        self._in_string = False
        if byte == b"\xff":
            self._drop()
        return None

    def _drop(self) -> None:
        del self._buffer[: self._position]
        self._begin()

    def _cut(self, end: int) -> bytes:
        text = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._begin()
        return text


def encode(value: dict[str, Any]) -> bytes:
    """One line, as every reader of QMP expects it from a server.

    Raises ValueError for numbers that JSON does not have: NaN and the infinities.
    """
    return json.dumps(value, separators=(", ", ": "), allow_nan=False).encode() + b"\r\n"


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object that *text* is. Raises ValueError with a message for the peer."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("JSON is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"JSON parse error, {error.msg} at byte {error.pos}") from None
    if not isinstance(value, dict):
        raise ValueError("QMP input must be a JSON object")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("JSON object with the same key twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")
