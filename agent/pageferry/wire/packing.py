"""msgpack, with its options pinned in one place.

A frame's meta is one msgpack map with string keys. A value is a scalar (nil, bool, int, float, str,
bin) or an array of scalars, never deeper: the depth is part of the protocol. Reading it that way
keeps what a hostile peer can make us allocate proportional to the bytes it sent. msgpack's own
limits do not: they bound each array by itself, so that a few KiB of nested array headers, each
announcing as much as is allowed, would allocate hundreds of MiB before the first of them proved to
be too short.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import NoReturn

import msgpack

from pageferry.wire.limits import MAX_ARRAY_ITEMS, MAX_KEYS, MAX_META_BYTES


class PackingError(ValueError):
    """Bytes that are not a meta as described above."""


def pack_map(meta: Mapping[str, object]) -> bytes:
    """*meta* as msgpack. Raises PackingError when it has no such form or is too long."""
    try:
        packed: bytes = msgpack.packb(meta, use_bin_type=True, strict_types=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise PackingError(str(error)) from error
    if len(packed) > MAX_META_BYTES:
        raise PackingError(f"meta of {len(packed)} bytes, more than {MAX_META_BYTES}")
    return packed


def unpack_map(meta: bytes | memoryview) -> dict[str, object]:
    """The map that *meta* is, in full. Raises PackingError and nothing else."""
    if len(meta) > MAX_META_BYTES:
        raise PackingError(f"meta of {len(meta)} bytes, more than {MAX_META_BYTES}")
    meta = bytes(meta)
    unpacker = msgpack.Unpacker(
        raw=False,
        use_list=True,
        strict_map_key=True,
        max_buffer_size=MAX_META_BYTES,
        read_size=max(len(meta), 1),  # else it allocates the whole limit for each small message
        max_array_len=0,
        max_map_len=0,
        max_ext_len=0,
        # Empty ones pass the limits, and 64 bytes for each byte that was sent is no proportion.
        object_hook=_refuse_nested,
        list_hook=_refuse_nested,
    )
    try:
        unpacker.feed(meta)
        return _read_map(unpacker, meta)
    except PackingError:
        raise
    except (msgpack.UnpackException, ValueError, OverflowError) as error:
        raise PackingError(str(error) or type(error).__name__) from error


def _refuse_nested(_value: object) -> NoReturn:
    raise PackingError("a map or an array within a value")


def _read_map(unpacker: msgpack.Unpacker, meta: bytes) -> dict[str, object]:
    keys = unpacker.read_map_header()
    if keys > MAX_KEYS:
        raise PackingError(f"map of {keys} keys, more than {MAX_KEYS}")
    values: dict[str, object] = {}
    for _ in range(keys):
        key = unpacker.unpack()
        if not isinstance(key, str) or key in values:
            raise PackingError("key that is no string, or comes twice")
        values[key] = _read_value(unpacker, meta)
    if unpacker.tell() != len(meta):
        raise PackingError(f"{len(meta) - unpacker.tell()} bytes after the map")
    return values


def _read_value(unpacker: msgpack.Unpacker, meta: bytes) -> object:
    at = unpacker.tell()
    if at >= len(meta) or not _is_array(meta[at]):
        return unpacker.unpack()
    items = unpacker.read_array_header()
    if items > MAX_ARRAY_ITEMS or items > len(meta) - at:
        raise PackingError(f"array of {items} items in {len(meta) - at} bytes")
    array = list(islice(unpacker, items))  # the items are unpacked in C; arrays in it are refused
    if len(array) != items:
        raise PackingError(f"array of {items} items that ends after {len(array)}")
    return array


def _is_array(first_byte: int) -> bool:
    return first_byte & 0xF0 == 0x90 or first_byte in (0xDC, 0xDD)
