"""When batches are packed: what shrinks, and in ``auto`` only where that is faster."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.policy.packing import (
    LONGEST_SKIP_BATCHES,
    PROBE_EVERY,
    Compression,
    PackingState,
    after_packing,
    after_plain,
    after_sending_packed,
    is_worthwhile,
    packs_next,
)

MIB = 1 << 20
GIGABIT_NS_PER_BYTE = 8.0
LOOPBACK_NS_PER_BYTE = 0.5
PACK_NS_PER_BYTE = 2.0


def run(
    mode: Compression,
    batches: int,
    *,
    share: Callable[[int], float],
    link_ns_per_byte: float,
) -> list[bool]:
    """A model of a link and a compressor: which of the batches went out packed."""
    state = PackingState()
    sent_packed = []
    for number in range(batches):
        if not packs_next(mode, state):
            state = after_plain(state, MIB, int(MIB * link_ns_per_byte))
            sent_packed.append(False)
            continue
        packed_bytes = max(1, int(MIB * share(number)))
        state = after_packing(state, MIB, packed_bytes, int(MIB * PACK_NS_PER_BYTE))
        if is_worthwhile(MIB, packed_bytes):
            state = after_sending_packed(state, packed_bytes, int(packed_bytes * link_ns_per_byte))
            sent_packed.append(True)
        else:
            sent_packed.append(False)
    return sent_packed


def quarter(_number: int) -> float:
    return 0.25


def noise(_number: int) -> float:
    return 1.001


def test_off_never_packs() -> None:
    assert not any(run(Compression.OFF, 50, share=quarter, link_ns_per_byte=100.0))


def test_on_packs_whatever_shrinks() -> None:
    assert all(run(Compression.ON, 50, share=quarter, link_ns_per_byte=LOOPBACK_NS_PER_BYTE))


def test_auto_packs_for_a_slow_link() -> None:
    packed = run(Compression.AUTO, 200, share=quarter, link_ns_per_byte=GIGABIT_NS_PER_BYTE)
    assert sum(packed) >= 190


def test_auto_leaves_a_fast_link_alone() -> None:
    packed = run(Compression.AUTO, 320, share=quarter, link_ns_per_byte=LOOPBACK_NS_PER_BYTE)
    assert sum(packed) <= 320 // PROBE_EVERY + 2


@pytest.mark.parametrize("mode", [Compression.ON, Compression.AUTO])
def test_noise_is_hardly_tried(mode: Compression) -> None:
    state = PackingState()
    tries = 0
    for _ in range(4 * LONGEST_SKIP_BATCHES):
        if packs_next(mode, state):
            tries += 1
            state = after_packing(state, MIB, MIB + 100, MIB)
        else:
            state = after_plain(state, MIB, 8 * MIB)
    assert tries <= 14


def test_text_after_noise_is_found_again() -> None:
    def share(number: int) -> float:
        return 1.001 if number < 100 else 0.2

    packed = run(Compression.ON, 100 + 2 * LONGEST_SKIP_BATCHES, share=share, link_ns_per_byte=8.0)
    assert all(packed[-50:])


@given(
    mode=st.sampled_from(Compression),
    shares=st.lists(st.floats(0.001, 1.5), min_size=1, max_size=60),
    link=st.floats(0.01, 1000),
)
def test_any_course_stays_within_bounds(
    mode: Compression, shares: list[float], link: float
) -> None:
    state = PackingState()
    for share in shares:
        if packs_next(mode, state):
            assert state.skip_batches == 0
            packed_bytes = max(1, int(MIB * share))
            state = after_packing(state, MIB, packed_bytes, MIB)
            if is_worthwhile(MIB, packed_bytes):
                state = after_sending_packed(state, packed_bytes, int(packed_bytes * link) + 1)
        else:
            state = after_plain(state, MIB, int(MIB * link) + 1)
        assert 0 <= state.skip_batches <= LONGEST_SKIP_BATCHES
        assert 1 <= state.next_skip_batches <= LONGEST_SKIP_BATCHES
