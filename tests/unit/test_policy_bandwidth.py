"""The cap: never exceeded by more than its slack, never slower than it has to be."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.policy.bandwidth import (
    NS_PER_S,
    SLACK_NS,
    STEP_NS,
    TokenBucket,
    smooth_batch_pages,
)

rates = st.integers(64 * 1024, 10**11)
steps = st.lists(
    st.tuples(st.integers(0, 2 * 10**9), st.integers(1, 10**8)), min_size=1, max_size=40
)
"""Each: ns that pass, and bytes that are taken then."""


def passed(bucket: TokenBucket, taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """When how many bytes go: (ns, bytes)."""
    now_ns, went = 0, []
    for after_ns, length in taken:
        now_ns += after_ns
        went.append((now_ns + bucket.take(length, now_ns), length))
    return went


@given(rates, steps)
@settings(deadline=None)
def test_no_stretch_of_time_carries_more_than_the_rate_and_the_slack(
    rate: int, taken: list[tuple[int, int]]
) -> None:
    went = passed(TokenBucket(rate), taken)
    for first in range(len(went)):
        total = 0
        for at_ns, length in went[first:]:
            # What goes last may go as a whole.
            span_ns = at_ns - went[first][0] + SLACK_NS
            assert total <= rate * span_ns / NS_PER_S + len(went)
            total += length


@given(rates, steps)
@settings(deadline=None)
def test_a_busy_sender_gets_the_whole_rate(rate: int, taken: list[tuple[int, int]]) -> None:
    bucket = TokenBucket(rate)
    now_ns = 0
    for _after, length in taken:
        now_ns += bucket.take(length, now_ns)
    total = sum(length for _after, length in taken[:-1])
    assert now_ns <= total * NS_PER_S / rate + 1


@given(rates, steps)
@settings(deadline=None)
def test_time_that_was_overslept_is_caught_up(rate: int, taken: list[tuple[int, int]]) -> None:
    late_ns = SLACK_NS // 2
    bucket = TokenBucket(rate)
    now_ns = 0
    for _after, length in taken:
        wait_ns = bucket.take(length, now_ns)
        now_ns += wait_ns + (late_ns if wait_ns else 0)
    total = sum(length for _after, length in taken[:-1])
    assert now_ns <= total * NS_PER_S / rate + late_ns + len(taken)


@given(rates, rates, st.integers(1, 10**9))
@settings(deadline=None)
def test_a_new_rate_takes_over_what_is_owed(rate: int, other: int, length: int) -> None:
    bucket = TokenBucket(rate)
    bucket.take(length, 0)
    bucket.set_rate(other, 0)
    owed_ns = length * NS_PER_S / other
    # Time is counted in whole ns, and that is some bytes at a high rate.
    rounding_bytes = rate / NS_PER_S + 2
    assert abs(bucket.wait_ns(0) - owed_ns) <= rounding_bytes * NS_PER_S / other + 1
    bucket.set_rate(0, 0)
    assert bucket.take(10**12, 0) == 0


def test_without_a_limit_nothing_waits() -> None:
    bucket = TokenBucket(0)
    assert [bucket.take(10**9, 0) for _again in range(3)] == [0, 0, 0]
    assert bucket.wait_ns(0) == 0
    assert smooth_batch_pages(0, 256) == 256


@given(rates, st.integers(1, 256))
def test_a_batch_is_a_page_or_a_step_at_most(rate: int, most: int) -> None:
    pages = smooth_batch_pages(rate, most)
    assert 1 <= pages <= most
    assert pages == 1 or pages * 4096 * NS_PER_S <= rate * STEP_NS
