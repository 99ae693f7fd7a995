"""The bounds of the protocol: what a peer can make this side allocate, and why it is that much."""

from __future__ import annotations

from typing import Final

VERSION: Final = 2
"""Version of the protocol that this agent speaks best."""

PACKED_SINCE_VERSION: Final = 2
"""Packed pages may be sent to a peer that speaks this one."""

OLDEST_VERSION: Final = 1
"""Oldest version that it still speaks: VERSION - 1."""

MAX_META_BYTES: Final = 256 * 1024
"""Longest meta: RUNS_PER_FRAME runs and room to spare."""

MAX_FIRST_META_BYTES: Final = 4096
"""Longest meta of a connection's first message, which comes from someone not known yet."""

MAX_KEYS: Final = 64
"""Most keys of one meta; the widest message has seven, the rest is room for later versions."""

MAX_ARRAY_ITEMS: Final = 65_536
"""Most items of one array: 32768 page runs."""

RUNS_PER_FRAME: Final = 8192
"""So many page runs always fit a frame: 144 KiB, whatever their values. Senders take no more."""

MAX_PAGES_PAYLOAD_BYTES: Final = 8 * 1024 * 1024
"""Longest payload of Pages: 2048 pages, the widest page-in window that is chosen by itself. Packed
pages unpack to no more."""

MAX_DEVICE_PAYLOAD_BYTES: Final = 1024 * 1024
"""Longest piece of device state; QEMU's stream is cut wherever the reader of it stopped."""

MAX_PAGE_NUMBER: Final = 2**48
"""End of the page numbers: 2**60 bytes, above any address a guest can have."""

MAX_BLOCKS: Final = 1024
"""QEMU has a handful of RAM blocks, and at most 256 memory slots beside them."""

MAX_CHANNELS: Final = 64
"""Data connections of one migration; more than the cores that one guest's migration may take."""

MAX_NAME_BYTES: Final = 255

MAX_WORDS: Final = 1024
"""Of a command line. libvirt's have some hundred."""

"""As long as QEMU lets a RAM block's idstr be."""

MAX_PROSE_CHARS: Final = 4096
"""Longest text meant for a person."""

FIRST_ROUND: Final = 1
"""Number of the first round; each one after it is numbered one higher."""


def choose_version(min_version: int, max_version: int) -> int | None:
    """The highest version that the peer, who speaks from *min_version* to *max_version*, and this
    side both speak; None where there is none.
    """
    version = min(VERSION, max_version)
    return version if version >= max(OLDEST_VERSION, min_version) else None
