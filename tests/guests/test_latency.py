"""What the freestanding guest says, and what is made of it."""

from __future__ import annotations

import pytest

from pageferry.testing.lab.latency import (
    Region,
    Sample,
    parse_ready,
    parse_sample,
    parse_verified,
    percentile_us,
)

KHZ = 1_000_000


def sample(histogram: dict[tuple[int, int], int]) -> Sample:
    return Sample(0.0, 0, 1, 0, True, histogram)


def test_ready_line_gives_regions_in_hexadecimal_and_pages() -> None:
    layout = parse_ready("READY hot=400000+2048 cold=c00000+8192 zero=2c00000+0 khz=2597884")
    assert layout.cold == Region(0xC00000, 8192)
    assert layout.zero.length_bytes == 0
    assert layout.tsc_khz == 2597884


def test_sample_line() -> None:
    parsed = parse_sample("S seq=3 tsc=ff gen=7 touches=1c40 run=0 hist=18.0:31,20.13:1", 5.0)
    assert parsed.histogram == {(18, 0): 31, (20, 13): 1}
    assert (parsed.tsc, parsed.generation, parsed.touches, parsed.running) == (255, 7, 7232, False)


def test_sample_without_batches_has_an_empty_histogram() -> None:
    assert parse_sample("S seq=0 tsc=1 gen=1 touches=0 run=1 hist=", 0.0).histogram == {}


@pytest.mark.parametrize(
    "line", ["S seq=1 tsc=1 gen", "S seq=1 tsc=zz gen=1 touches=0 run=1 hist="]
)
def test_damaged_sample_is_refused(line: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        parse_sample(line, 0.0)


def test_verified_line_adds_up() -> None:
    found = parse_verified("VERIFIED cold=100/2 hot=50/1 zero=7/0 gen=4 touches=ff", ["V page=1"])
    assert (found.pages, found.bad, found.details) == (157, 3, ("V page=1",))


def test_percentile_is_the_upper_end_of_its_bucket_over_all_samples() -> None:
    many = sample({(10, 0): 99})
    slow = sample({(20, 0): 1})
    # 1 GHz: bucket 10.0 ends at 1088 ticks, bucket 20.0 at 17/16 of 2 ** 20.
    assert percentile_us([many, slow], 0.99, KHZ) == pytest.approx(1.088)
    assert percentile_us([many, slow], 1.0, KHZ) == pytest.approx((1 << 20) * 17 / 16 / 1000)


def test_percentile_of_nothing_is_unknown() -> None:
    assert percentile_us([sample({})], 0.99, KHZ) is None
