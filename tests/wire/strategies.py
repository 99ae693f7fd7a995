"""Hypothesis strategies for every message, made from what the message's fields may hold."""

from __future__ import annotations

import dataclasses
import string
from typing import Any, get_type_hints

from hypothesis import strategies as st

from pageferry.model.blocks import PAGE_BYTES
from pageferry.wire import fields
from pageferry.wire import messages as m
from pageferry.wire.limits import (
    MAX_NAME_BYTES,
    MAX_PAGE_NUMBER,
    MAX_PAGES_PAYLOAD_BYTES,
    MAX_PROSE_CHARS,
)

printable = st.characters(codec="utf-8").filter(str.isprintable)
names = st.text(printable, min_size=1, max_size=60).filter(
    lambda name: len(name.encode()) <= MAX_NAME_BYTES
)
prose = st.text(printable | st.just("\n"), max_size=200) | st.just("x" * MAX_PROSE_CHARS)


def hex_digits(least: int, most: int) -> st.SearchStrategy[str]:
    """Lower-case hexadecimal text."""
    return st.text(string.hexdigits.lower(), min_size=least, max_size=most)


def run_lists(most_runs: int = 50, most_pages: int = 2**40) -> st.SearchStrategy[list[int]]:
    """Flat lists of gaps and counts."""
    run = st.tuples(st.integers(0, 2**41), st.integers(1, most_pages))
    return st.lists(run, min_size=1, max_size=most_runs).map(
        lambda runs: [number for pair in runs for number in pair]
    )


def _of_kind(kind: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - a table
    match kind:
        case fields.Number():
            return st.integers(kind.least, kind.most)
        case fields.Flag():
            return st.booleans()
        case fields.Name():
            return names
        case fields.Prose():
            return prose
        case fields.Words():
            return st.lists(st.text("ab-=/, é", max_size=9), max_size=8).map(tuple)
        case fields.Hex():
            return hex_digits(kind.least_chars, kind.most_chars)
        case fields.Blob():
            return st.binary(min_size=kind.length_bytes, max_size=kind.length_bytes)
        case fields.Numbers():
            return st.lists(st.integers(0, kind.most), min_size=1, max_size=kind.most_items)
        case fields.PageRuns():
            return run_lists()
        case fields.Blocks():
            length = st.integers(1, MAX_PAGE_NUMBER).map(lambda pages: pages * PAGE_BYTES)
            block = st.tuples(names, length)
            return st.lists(block, min_size=1, max_size=9, unique_by=lambda b: b[0]).map(tuple)
        case fields.Digests():
            return st.dictionaries(names, hex_digits(16, 128), min_size=1, max_size=9)
        case _:
            raise AssertionError(f"no strategy for {kind}")


def messages_of(message_type: type[m.Message]) -> st.SearchStrategy[m.Message]:
    """Messages of one type."""
    if message_type is m.DeviceData:
        return st.binary(max_size=5000).map(m.DeviceData)
    hints = get_type_hints(message_type, include_extras=True)
    arguments = {
        field.name: _of_kind(hints[field.name].__metadata__[0])
        for field in dataclasses.fields(message_type)
    }
    if message_type in (m.Pages, m.Packed):
        arguments["runs"] = run_lists(most_runs=40, most_pages=50)
    if message_type is m.Packed:
        arguments["length"] = st.integers(0, MAX_PAGES_PAYLOAD_BYTES)
    return st.builds(message_type, **arguments)


control_messages = st.sampled_from(sorted(m.CONTROL_TYPES, key=lambda t: t.name)).flatmap(
    messages_of
)
all_messages = st.sampled_from(m.MESSAGE_TYPES).flatmap(messages_of)
