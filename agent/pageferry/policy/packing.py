"""Whether to pack the next batch of pages by zstd, or to send it as it is.

Packing pays where the link is slower than the compressor and the pages shrink. Both are measured
batch by batch, since guests change from text to noise within a few MiB, and links are shared. What
loses is tried again now and then: one batch in PROBE_EVERY, so that being wrong costs little and
does not last.

Pure: durations come in as arguments. A `PackingState` belongs to one connection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

WORTHWHILE_SHARE = 0.9
"""A batch that packs to more than this of its size is sent as it is: unpacking it would cost the
destination more than the tenth saves the link."""

PROBE_EVERY = 32
"""A batch in so many tries what was not chosen."""

LONGEST_SKIP_BATCHES = 256
"""After batches that did not shrink so many are sent as they are, at most, before one is tried:
with 1 MiB a batch and 2 ms to pack one, a percent of the time of a 1 GB/s link."""

WEIGHT = 0.25
"""Of the newest measurement in the running averages: some ten batches are remembered."""


class Compression(StrEnum):
    """The parameter. ``on`` packs whatever shrinks; ``auto`` what is faster packed."""

    OFF = "off"
    AUTO = "auto"
    ON = "on"


@dataclass(frozen=True, slots=True)
class PackingState:
    """What was measured so far. Averages are None until there is a measurement.

    ``plain_ns_per_byte``: to send a byte as it is. ``pack_ns_per_byte``: to pack a byte.
    ``packed_share``: packed bytes for each byte. ``skip_batches``: still to be sent as they are,
    after some that did not shrink. ``batches``: decided so far.
    """

    plain_ns_per_byte: float | None = None
    pack_ns_per_byte: float | None = None
    packed_share: float | None = None
    skip_batches: int = 0
    next_skip_batches: int = 1
    batches: int = 0


def packs_next(mode: Compression, state: PackingState) -> bool:
    """Whether to try to pack the next batch."""
    if mode is Compression.OFF or state.skip_batches > 0:
        return False
    if mode is Compression.ON:
        return True
    if state.packed_share is None or state.pack_ns_per_byte is None:
        return True
    if state.plain_ns_per_byte is None:
        return False
    is_probe = state.batches % PROBE_EVERY == PROBE_EVERY - 1
    return _is_faster(state) is not is_probe


def after_plain(state: PackingState, sent_bytes: int, send_ns: int) -> PackingState:
    """A batch was sent as it is, without having been packed."""
    return replace(
        state,
        plain_ns_per_byte=_average(state.plain_ns_per_byte, send_ns / sent_bytes),
        skip_batches=max(0, state.skip_batches - 1),
        batches=state.batches + 1,
    )


def after_packing(
    state: PackingState, plain_bytes: int, packed_bytes: int, pack_ns: int
) -> PackingState:
    """A batch was packed; `is_worthwhile` tells in which form it is sent."""
    shrank = is_worthwhile(plain_bytes, packed_bytes)
    next_skip = 1 if shrank else min(2 * state.next_skip_batches, LONGEST_SKIP_BATCHES)
    return replace(
        state,
        pack_ns_per_byte=_average(state.pack_ns_per_byte, pack_ns / plain_bytes),
        packed_share=_average(state.packed_share, packed_bytes / plain_bytes),
        skip_batches=0 if shrank else state.next_skip_batches,
        next_skip_batches=next_skip,
        batches=state.batches + 1,
    )


def after_sending_packed(state: PackingState, packed_bytes: int, send_ns: int) -> PackingState:
    """The packed batch was sent. A link takes as long for a packed byte as for any other."""
    return replace(
        state, plain_ns_per_byte=_average(state.plain_ns_per_byte, send_ns / packed_bytes)
    )


def is_worthwhile(plain_bytes: int, packed_bytes: int) -> bool:
    """Whether a packed batch is sent in that form."""
    return packed_bytes <= WORTHWHILE_SHARE * plain_bytes


def _is_faster(state: PackingState) -> bool:
    assert state.plain_ns_per_byte is not None
    assert state.pack_ns_per_byte is not None
    assert state.packed_share is not None
    saved_ns_per_byte = (1 - state.packed_share) * state.plain_ns_per_byte
    return state.pack_ns_per_byte < saved_ns_per_byte


def _average(before: float | None, newest: float) -> float:
    return newest if before is None else (1 - WEIGHT) * before + WEIGHT * newest
