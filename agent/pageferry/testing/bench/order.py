"""In which order the runs are made. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunKey:
    """One run: `number` counts from 0 for each contender of a scenario."""

    scenario: str
    contender: str
    number: int


def interleaved(
    scenario: str, contenders: Sequence[str], runs: int, once: Collection[str] = ()
) -> Iterator[RunKey]:
    """A B C, C B A, A B C, ...: what changes on the machine meanwhile meets all of them alike.

    The contenders in *once* take part in the first turn only.
    """
    for number in range(runs):
        turn = contenders if number % 2 == 0 else tuple(reversed(contenders))
        for contender in turn:
            if number == 0 or contender not in once:
                yield RunKey(scenario, contender, number)
