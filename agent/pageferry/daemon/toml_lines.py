"""On which line of a TOML file a key stands. tomllib does not tell.

Good for messages, not for parsing: text inside multi-line strings is taken for what it looks like.
"""

from __future__ import annotations

import re
import tomllib
from typing import Final

_PART: Final = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_KEY: Final = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER: Final = re.compile(rf"\s*\[{{1,2}}\s*({_KEY})\s*\]")
_ASSIGNMENT: Final = re.compile(rf"\s*({_KEY})\s*=")


def line_of(text: str, path: tuple[str, ...]) -> int | None:
    """The number of the line, from 1, that first speaks of *path* or of the nearest table above."""
    seen: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _parts(header[1])
            _note(seen, table, number)
        elif assignment := _ASSIGNMENT.match(line):
            _note(seen, table + _parts(assignment[1]), number)
    while path and path not in seen:
        path = path[:-1]
    return seen.get(path)


def _note(seen: dict[tuple[str, ...], int], path: tuple[str, ...], number: int) -> None:
    for length in range(1, len(path) + 1):
        seen.setdefault(path[:length], number)


def _parts(key: str) -> tuple[str, ...]:
    """``a."b c"`` as ("a", "b c"): the parser itself knows best how keys are written."""
    try:
        value: object = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    parts = []
    while isinstance(value, dict):
        part, value = next(iter(value.items()))
        parts.append(part)
    return tuple(parts)
