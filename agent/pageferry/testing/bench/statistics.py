"""Medians, spreads, ratios and rates. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """One figure over several runs."""

    median: float
    least: float
    most: float
    runs: int


def summary(values: Iterable[float | None]) -> Summary | None:
    """The median and the range of those values that are there; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Summary(statistics.median(known), min(known), max(known), len(known))


def ratio(one: float | None, other: float | None) -> float | None:
    """*one* divided by *other*; None when either is missing or *other* is 0."""
    if one is None or not other:
        return None
    return one / other


def rate_between(
    times_s: Sequence[float], amounts: Sequence[float], first_share: float, last_share: float
) -> float | None:
    """How fast a growing amount grows per second, from one share of its growth to another.

    With 0.1 and 0.9 the start and the tail, where other things than copying take the time, are left
    out. None when it does not grow, or when fewer than two samples lie in between.
    """
    if len(times_s) < 2 or amounts[-1] <= amounts[0]:
        return None
    growth = amounts[-1] - amounts[0]
    low, high = amounts[0] + first_share * growth, amounts[0] + last_share * growth
    within = [
        (at_s, amount)
        for at_s, amount in zip(times_s, amounts, strict=True)
        if low <= amount <= high
    ]
    if len(within) < 2 or within[-1][0] <= within[0][0]:
        return None
    return (within[-1][1] - within[0][1]) / (within[-1][0] - within[0][0])


def middle(values: Sequence[float]) -> int:
    """The index of the run to show: the one whose value is the (lower) median."""
    if not values:
        raise ValueError("no runs")
    return sorted(range(len(values)), key=lambda index: values[index])[(len(values) - 1) // 2]
