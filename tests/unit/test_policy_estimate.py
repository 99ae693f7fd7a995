"""What a migration is reckoned to cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.model.residency import ResidencyBytes
from pageferry.policy.downtime import HANDOVER_MS
from pageferry.policy.estimate import WriteSample, estimate

MIB = 1 << 20
IDLE = WriteSample(0.1, [0] * 20)


def test_idle_guest_costs_its_data_and_its_swap_once() -> None:
    found = ResidencyBytes(100 * MIB, 300 * MIB, 600 * MIB)
    costs = estimate(
        found,
        IDLE,
        bandwidth=100 * MIB,
        swap_bandwidth=50 * MIB,
        downtime_limit_ms=300,
        max_rounds=30,
    )
    assert costs.transfer_bytes == 400 * MIB
    assert costs.page_in_bytes == 300 * MIB
    assert costs.duration_ms == 6000 + 1000 + HANDOVER_MS
    assert costs.downtime_ms == HANDOVER_MS
    assert costs.rounds == 2
    assert costs.converges


def test_slow_network_bounds_the_cold_pass_too() -> None:
    found = ResidencyBytes(0, 100 * MIB, 0)
    costs = estimate(
        found,
        IDLE,
        bandwidth=10 * MIB,
        swap_bandwidth=50 * MIB,
        downtime_limit_ms=300,
        max_rounds=9,
    )
    assert costs.duration_ms == 10_000 + HANDOVER_MS


def test_guest_that_rewrites_a_small_set_converges_and_one_that_writes_all_does_not() -> None:
    found = ResidencyBytes(1024 * MIB, 0, 0)
    small = WriteSample(0.1, [256] * 20)  # the same 1 MiB over and over
    settings = {"bandwidth": 100.0 * MIB, "downtime_limit_ms": 300, "max_rounds": 30}
    costs = estimate(found, small, **settings)  # type: ignore[arg-type]
    assert costs.converges
    assert costs.downtime_ms == HANDOVER_MS + 10
    fast = WriteSample(0.1, [12_800 * step for step in range(1, 21)])  # 500 MiB/s, ever new pages
    costs = estimate(found, fast, **settings)  # type: ignore[arg-type]
    assert not costs.converges
    assert costs.rounds == 31
    assert costs.downtime_ms > 300


def test_sample_is_read_between_its_steps_and_continued_after_them() -> None:
    sample = WriteSample(0.1, [10, 20, 25, 30])
    assert sample.pages_in(0, 1000) == 0
    assert sample.pages_in(0.05, 1000) == 5
    assert sample.pages_in(0.2, 1000) == 20
    assert sample.pages_in(0.4, 1000) == 30
    assert sample.pages_in(0.6, 1000) == 40  # as in the second half: 5 a step
    assert sample.pages_in(100, 1000) == 1000
    assert sample.length_s == pytest.approx(0.4)


@given(
    st.lists(st.integers(0, 10_000), min_size=2, max_size=30).map(sorted),
    st.floats(0, 100),
    st.floats(0, 100),
)
def test_more_time_is_never_fewer_pages(counts: list[int], one: float, other: float) -> None:
    sample = WriteSample(0.1, counts)
    low, high = sorted((one, other))
    assert sample.pages_in(low, 1 << 40) <= sample.pages_in(high, 1 << 40)


@given(
    st.integers(0, 1 << 18),
    st.integers(0, 1 << 18),
    st.lists(st.integers(0, 1 << 18), min_size=2, max_size=30).map(sorted),
    st.integers(1, 2000),
)
def test_reckoning_ends_and_adds_up(
    resident: int, swapped: int, counts: list[int], limit_ms: int
) -> None:
    found = ResidencyBytes(resident * 4096, swapped * 4096, 0)
    costs = estimate(found, WriteSample(0.1, counts), downtime_limit_ms=limit_ms, max_rounds=20)
    assert costs.transfer_bytes >= found.resident_bytes + found.swapped_bytes
    assert costs.rounds <= 21
    assert costs.downtime_ms >= HANDOVER_MS
    assert costs.duration_ms >= costs.downtime_ms
