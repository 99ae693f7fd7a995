"""Every state of the world, each checked: never two owners, and never none for good.

Breadth first, so the way to a bad state is a shortest one. Safety is checked in each state.
Liveness is checked on the moves that need no fault: from every state that can be reached at all a
good end must be reachable by such moves alone, and a good end must have none that leads out of it.
Processes that do anything in the end, in whatever order, then get there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.testing.ownership.moves import Explorer
from pageferry.testing.ownership.world import (
    D_GONE,
    D_LOADED,
    D_PENDING,
    D_RUNS,
    NO_JOURNAL,
    OTHER,
    S_COMPLETED,
    S_GONE,
    S_RUNS,
    Physics,
    World,
    WorldError,
)

_KEPT = (SourcePhase.FAILED.value, SourcePhase.CANCELLED.value)
_TAKEN = (
    DestinationPhase.COMMITTED.value,
    DestinationPhase.RUNNING.value,
    DestinationPhase.LOST.value,
)
_NEVER = (DestinationPhase.ABORTED.value, DestinationPhase.REFUSED.value)


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong, and the moves that lead there from the beginning."""

    what: str
    world: World
    way: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((self.what, *(f"  {move}" for move in self.way), f"  {self.world}"))


@dataclass(frozen=True, slots=True)
class Exploration:
    """How much was visited, and the first thing found to be wrong."""

    states: int
    transitions: int
    ends: int
    violation: Violation | None


def wrong_with(world: World) -> str | None:
    """What is wrong in this state by itself, or None."""
    if world.source_qemu == S_RUNS and world.destination_qemu == D_RUNS:
        return "two owners: the guest runs on both sides"
    return _wrong_after_reclaiming(world) if world.reclaimed else _wrong_by_rules(world)


def _wrong_by_rules(world: World) -> str | None:
    """As long as no operator had to give their word."""
    if world.ran and (world.source_qemu == S_RUNS or world.came_back):
        return "two owners: the guest ran on the source after or while it ran on the destination"
    if world.source_journal in _KEPT and world.destination_journal in _TAKEN:
        return "two owners by the journals"
    if world.source_journal == SourcePhase.COMPLETED.value and world.destination_journal in _NEVER:
        return "no owner by the journals"
    if world.destination_journal == DestinationPhase.ABORTED.value and world.destination_qemu in (
        D_LOADED,
        D_PENDING,
        D_RUNS,
    ):
        return "a broken promise: aborted, and QEMU can still run the guest"
    return None


def _wrong_after_reclaiming(world: World) -> str | None:
    """By the operator's word. What the guest did there before its host was switched off is lost:
    that it ran there, or that the journal says so, is no second owner any more.
    """
    if world.destination_qemu in (D_LOADED, D_PENDING, D_RUNS):
        return "two owners: the destination still has a guest that was reclaimed"
    if world.source_journal == SourcePhase.COMPLETED.value and (
        world.source_qemu == S_RUNS or world.came_back
    ):
        return "no owner by the journals: the guest was reclaimed, and then given away"
    return None


def is_good_end(world: World) -> bool:
    """Nobody is at work, both journals are closed, and the guest has one clear owner: it runs
    there, or the QEMU that owned it is gone."""
    if any(
        (
            world.source_worker,
            world.source_settler,
            world.destination_worker,
            world.destination_settler,
        )
    ):
        return False
    source, destination = world.source_journal, world.destination_journal
    if world.reclaimed and source in _KEPT:
        ends = (DestinationPhase.ABORTED, DestinationPhase.LOST, DestinationPhase.RUNNING)
        closed = destination in {each.value for each in ends} | {NO_JOURNAL}
        return closed and world.source_qemu in (S_RUNS, S_GONE, OTHER)
    if source in _KEPT and destination == DestinationPhase.ABORTED.value:
        return world.source_qemu in (S_RUNS, S_GONE, OTHER)
    if source != SourcePhase.COMPLETED.value or world.source_qemu not in (
        S_COMPLETED,
        S_GONE,
        OTHER,
    ):
        return False
    if destination == DestinationPhase.RUNNING.value:
        return world.destination_qemu in (D_RUNS, D_GONE, OTHER)
    return destination == DestinationPhase.LOST.value and world.destination_qemu in (D_GONE, OTHER)


class _Graph:
    """What has been visited: states by number, each with where it was first come from."""

    def __init__(self, first: World) -> None:
        self.numbers = {first: 0}
        self.worlds = [first]
        self._came_from: list[tuple[int, str]] = [(-1, "")]
        self.into: list[list[int]] = [[]]
        """For each state, the states with a move into it that needs no fault."""

    def number(self, world: World, origin: int, move: str) -> tuple[int, bool]:
        """The state's number, and whether it is new."""
        known = self.numbers.get(world)
        if known is not None:
            return known, False
        new = len(self.worlds)
        self.numbers[world] = new
        self.worlds.append(world)
        self._came_from.append((origin, move))
        self.into.append([])
        return new, True

    def way(self, number: int) -> Iterator[str]:
        """The moves to that state, last one first."""
        while number:
            number, move = self._came_from[number]
            yield move

    def violation(self, what: str, number: int, *more: str) -> Violation:
        way = (*reversed(list(self.way(number))), *more)
        return Violation(what, self.worlds[number], way)


def explore(physics: Physics | None = None, *, max_states: int = 5_000_000) -> Exploration:
    """Visit every state; stop at the first that is wrong. Raises MemoryError beyond max_states."""
    explorer = Explorer(physics or Physics())
    graph = _Graph(World())
    waiting = deque([0])
    transitions = 0
    while waiting:
        number = waiting.popleft()
        world = graph.worlds[number]
        try:
            for move in explorer.moves(world):
                transitions += 1
                after, is_new = graph.number(move.after, number, move.name)
                if not move.is_fault:
                    graph.into[after].append(number)
                if not is_new:
                    continue
                wrong = wrong_with(move.after)
                if wrong is not None:
                    found = graph.violation(wrong, after)
                    return Exploration(len(graph.worlds), transitions, 0, found)
                waiting.append(after)
        except WorldError as error:
            found = graph.violation(str(error), number)
            return Exploration(len(graph.worlds), transitions, 0, found)
        if len(graph.worlds) > max_states:
            raise MemoryError(f"more than {max_states} states")
    if explorer.may_end_nowhere:
        return Exploration(len(graph.worlds), transitions, 0, None)
    ends, stuck = _liveness(graph, explorer)
    return Exploration(len(graph.worlds), transitions, ends, stuck)


def _liveness(graph: _Graph, explorer: Explorer) -> tuple[int, Violation | None]:
    ends = [number for number, world in enumerate(graph.worlds) if is_good_end(world)]
    for number in ends:
        for move in explorer.moves(graph.worlds[number]):
            if not move.is_fault and not is_good_end(move.after):
                what = "a good end is left without a fault"
                return len(ends), graph.violation(what, number, move.name)
    reaches = bytearray(len(graph.worlds))
    waiting = list(ends)
    for number in ends:
        reaches[number] = 1
    while waiting:
        for before in graph.into[waiting.pop()]:
            if not reaches[before]:
                reaches[before] = 1
                waiting.append(before)
    stuck = reaches.find(0)
    if stuck < 0:
        return len(ends), None
    return len(ends), graph.violation("no owner for good: no fault-free way to an end", stuck)
