"""What the freestanding guest says, parsed: layout, samples of its touch times, verifications.

``guest/guest.c`` defines the lines. Pure: text in, values out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pageferry.model.blocks import PAGE_BYTES

SUB_BUCKETS = 16
"""The guest's histogram cuts each power of two into this many buckets: 3 to 6 % apart."""


@dataclass(frozen=True, slots=True)
class Region:
    """One region of guest memory: guest-physical address and pages."""

    address: int
    pages: int

    @property
    def length_bytes(self) -> int:
        """Its length."""
        return self.pages * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class GuestLayout:
    """The READY line: where the regions lie, and the rate of the guest's clock."""

    hot: Region
    cold: Region
    zero: Region
    tsc_khz: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One S line: batches of hot touches since the line before, by duration in clock ticks."""

    host_time_s: float
    tsc: int
    generation: int
    touches: int
    running: bool
    histogram: dict[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class Verification:
    """One VERIFIED line with the V lines before it."""

    cold_pages: int
    cold_bad: int
    hot_pages: int
    hot_bad: int
    zero_pages: int
    zero_bad: int
    generation: int
    touches: int
    details: tuple[str, ...] = ()

    @property
    def pages(self) -> int:
        """Pages checked in all."""
        return self.cold_pages + self.hot_pages + self.zero_pages

    @property
    def bad(self) -> int:
        """Pages that did not hold what they must."""
        return self.cold_bad + self.hot_bad + self.zero_bad


def parse_ready(line: str) -> GuestLayout:
    """Parse a READY line. ValueError or KeyError when it is not one."""
    values = _fields(line)
    return GuestLayout(
        hot=_region(values["hot"]),
        cold=_region(values["cold"]),
        zero=_region(values["zero"]),
        tsc_khz=int(values["khz"]),
    )


def parse_sample(line: str, host_time_s: float) -> Sample:
    """Parse an S line. ValueError or KeyError when it is not one."""
    values = _fields(line)
    histogram = {}
    for entry in filter(None, values["hist"].split(",")):
        bucket, _, count = entry.partition(":")
        exponent, _, part = bucket.partition(".")
        histogram[int(exponent), int(part)] = int(count)
    return Sample(
        host_time_s=host_time_s,
        tsc=int(values["tsc"], 16),
        generation=int(values["gen"]),
        touches=int(values["touches"], 16),
        running=values["run"] == "1",
        histogram=histogram,
    )


def parse_verified(line: str, details: Iterable[str] = ()) -> Verification:
    """Parse a VERIFIED line. ValueError or KeyError when it is not one."""
    values = _fields(line)
    counts = {name: [int(n) for n in values[name].split("/")] for name in ("cold", "hot", "zero")}
    return Verification(
        cold_pages=counts["cold"][0],
        cold_bad=counts["cold"][1],
        hot_pages=counts["hot"][0],
        hot_bad=counts["hot"][1],
        zero_pages=counts["zero"][0],
        zero_bad=counts["zero"][1],
        generation=int(values["gen"]),
        touches=int(values["touches"], 16),
        details=tuple(details),
    )


def percentile_us(samples: Iterable[Sample], share: float, tsc_khz: int) -> float | None:
    """The duration that `share` (0..1) of the batches in these samples do not exceed, in µs.

    The upper end of the bucket it falls in; None without batches.
    """
    total: Counter[tuple[int, int]] = Counter()
    for sample in samples:
        total.update(sample.histogram)
    wanted = share * sum(total.values())
    seen = 0
    for exponent, part in sorted(total):
        seen += total[exponent, part]
        if seen >= wanted:
            ticks = (SUB_BUCKETS + part + 1) << exponent >> 4
            return ticks * 1000 / tsc_khz
    return None


def _fields(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _region(text: str) -> Region:
    address, _, pages = text.partition("+")
    return Region(address=int(address, 16), pages=int(pages))
