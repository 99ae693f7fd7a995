"""What an evacuation decides: order, concurrency, destinations, retries. Pure: no I/O, no clock.

The effects are in `evacuate`, what survives a crash in `evacuation_state`. Times are in seconds
since 1970 and are arguments, since a retry's delay outlives the process that decided it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final


class Order(StrEnum):
    """Which guests go first."""

    CHEAPEST = "cheapest"
    """Most guests away early: when the host may fail soon, or memory is needed soon."""
    DEAREST = "dearest"
    """The long ones first, with the short ones beside them: the evacuation as a whole ends sooner.
    """


class State(StrEnum):
    """Where a guest stands."""

    WAITING = "waiting"
    STARTING = "starting"
    """About to be asked for; after a crash it may have been, or not."""
    MIGRATING = "migrating"
    COMPLETED = "completed"
    GIVEN_UP = "given-up"
    """It runs where it was, and is not tried again."""
    UNKNOWN = "unknown"
    """Nobody knows yet on which host it may run: it is not touched again."""


IN_FLIGHT: Final = frozenset({State.STARTING, State.MIGRATING})

FINAL_KINDS: Final = frozenset({"cancelled", "configuration", "denied"})
"""Kinds of errors (see ErrorReport in the reference) that trying again cannot change: somebody
wanted it so."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a guest's migration is estimated to cost."""

    total_time_ms: int = 0
    transfer_bytes: int = 0
    page_in_bytes: int = 0
    resident_bytes: int = 0
    swapped_bytes: int = 0
    converges: bool = True


@dataclass(frozen=True, slots=True)
class Failure:
    """One try that did not complete."""

    destination: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Guest:
    """All that is known of one guest of the evacuation.

    ``earlier_id``: the guest's last migration before the one that is being started, by which a
    crash in between can be told from a migration that has begun.
    """

    name: str
    state: State = State.WAITING
    cost: Cost | None = None
    destination: str = ""
    migration_id: str = ""
    earlier_id: str = ""
    failures: tuple[Failure, ...] = ()
    not_before_s: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Destination:
    """A host that guests may go to.

    ``guests``: those that its daemon knows; ``…_bytes``: what it had free when it was asked. None:
    it could not be asked. ``blocked``: why it cannot take any; empty when it can.
    """

    address: str
    guests: frozenset[str] | None = None
    memory_bytes: int | None = None
    swap_bytes: int | None = None
    blocked: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much at a time, and how often.

    ``page_in_bytes``: cold memory of guests that are being carried at a time, since they share the
    source's swap device; one guest always goes, however much it has. 0: no limit.
    """

    parallel: int = 2
    per_destination: int = 2
    page_in_bytes: int = 0
    tries: int = 3
    retry_s: float = 5.0
    """Before the second try; twice as long before each further one."""


@dataclass(slots=True)
class Plan:
    """The guests by name and where they may go. `starts` and the functions below decide."""

    destinations: Sequence[Destination]
    limits: Limits
    order: Order = Order.CHEAPEST
    guests: dict[str, Guest] = field(default_factory=dict)
    placed: set[str] = field(default_factory=set)
    """Guests that were sent somewhere since the destinations were asked what they have free."""

    def starts(self, now_s: float) -> list[tuple[str, str]]:
        """Which guests to start now, and to where: (name, address)."""
        chosen: dict[str, Guest] = dict(self.guests)
        placed = set(self.placed)
        found = []
        for guest in in_order(self.guests.values(), self.order):
            if guest.state is not State.WAITING or guest.not_before_s > now_s:
                continue
            if not self._may_start(guest, chosen):
                continue
            address = self._choose(guest, chosen, placed)
            if address is None:
                continue
            chosen[guest.name] = replace(guest, state=State.STARTING, destination=address)
            placed.add(guest.name)
            found.append((guest.name, address))
        return found

    def next_retry_s(self, now_s: float) -> float | None:
        """When a guest that waits for a retry is due; None when none waits."""
        waiting = [
            guest.not_before_s
            for guest in self.guests.values()
            if guest.state is State.WAITING and guest.not_before_s > now_s
        ]
        return min(waiting, default=None)

    def in_flight(self) -> list[Guest]:
        """Guests that are being carried, or may be."""
        return [guest for guest in self.guests.values() if guest.state in IN_FLIGHT]

    def why_stuck(self, guest: Guest) -> str:
        """Why a guest that waits can go nowhere, for the report."""
        reasons = [
            f"{each.address} {self._obstacle(guest, each, self.guests, self.placed)}"
            for each in self.destinations
        ]
        return "; ".join(reasons) or "there is no destination"

    def failed(self, guest: Guest, kind: str, message: str, now_s: float) -> Guest:
        """The guest after a try that did not complete, with what is to be done about it."""
        failures = (*guest.failures, Failure(guest.destination, kind, message))
        if kind == "unknown":
            # Its ID stays: `pageferry recover` wants to know it.
            return replace(guest, state=State.UNKNOWN, failures=failures, note=message)
        told = replace(guest, failures=failures, note=message, migration_id="", destination="")
        if kind in FINAL_KINDS or len(failures) >= self.limits.tries:
            return replace(told, state=State.GIVEN_UP)
        delay_s = self.limits.retry_s * 2 ** (len(failures) - 1)
        if kind == "refused" and self._untried(told):
            delay_s = 0.0
        return replace(told, state=State.WAITING, not_before_s=now_s + delay_s)

    def _untried(self, guest: Guest) -> bool:
        tried = {failure.destination for failure in guest.failures}
        return any(each.address not in tried and not each.blocked for each in self.destinations)

    def _may_start(self, guest: Guest, guests: Mapping[str, Guest]) -> bool:
        running = [each for each in guests.values() if each.state in IN_FLIGHT]
        if len(running) >= self.limits.parallel:
            return False
        paging_in = sum(_page_in(each) for each in running)
        if not self.limits.page_in_bytes or not paging_in:
            return True
        return not _page_in(guest) or paging_in + _page_in(guest) <= self.limits.page_in_bytes

    def _choose(self, guest: Guest, guests: Mapping[str, Guest], placed: set[str]) -> str | None:
        """The destination least tried with this guest, of those the one with most room."""
        able = [
            each
            for each in self.destinations
            if not self._obstacle(guest, each, guests, placed)
            and _busy(each, guests) < self.limits.per_destination
        ]
        if not able:
            return None

        def rank(each: Destination) -> tuple[int, int, int]:
            tried = sum(failure.destination == each.address for failure in guest.failures)
            room = _memory_left(each, guests, placed)
            return (tried, -(room or 0), _busy(each, guests))

        return min(able, key=rank).address

    def _obstacle(
        self, guest: Guest, destination: Destination, guests: Mapping[str, Guest], placed: set[str]
    ) -> str:
        if destination.blocked:
            return destination.blocked
        if destination.guests is not None and guest.name not in destination.guests:
            return "does not know this guest"
        memory = _memory_left(destination, guests, placed)
        if memory is None or guest.cost is None:
            return ""
        swap = _swap_left(destination, guests, placed)
        # Cold pages that find no swap there stay in memory.
        spilled = 0 if swap is None else max(0, guest.cost.swapped_bytes - max(0, swap))
        if guest.cost.resident_bytes + spilled > memory:
            return f"has no room for it ({max(0, memory) >> 20} MiB left)"
        return ""


def in_order(guests: Iterable[Guest], order: Order) -> list[Guest]:
    """The guests as they are to be started. Those that are not expected to converge go last, when
    the host is calmer; those of which nothing is known before them."""

    def key(guest: Guest) -> tuple[int, int, str]:
        if guest.cost is None:
            return (1, 0, guest.name)
        time_ms = guest.cost.total_time_ms
        sign = 1 if order is Order.CHEAPEST else -1
        return (0 if guest.cost.converges else 2, sign * time_ms, guest.name)

    return sorted(guests, key=key)


def exit_status(guests: Iterable[Guest]) -> int:
    """0: all are away; 5: of one it is not known which host has it; 1: some are left. As of the
    command line's verbs."""
    states = {guest.state for guest in guests}
    if State.UNKNOWN in states:
        return 5
    return 0 if states <= {State.COMPLETED} else 1


def _page_in(guest: Guest) -> int:
    return guest.cost.page_in_bytes if guest.cost is not None else 0


def _busy(destination: Destination, guests: Mapping[str, Guest]) -> int:
    return sum(
        guest.state in IN_FLIGHT and guest.destination == destination.address
        for guest in guests.values()
    )


def _costs_at(
    destination: Destination, guests: Mapping[str, Guest], placed: set[str]
) -> list[Cost]:
    """Of the guests that have come there, or are about to, since it was asked for its room."""
    return [
        guest.cost
        for guest in guests.values()
        if guest.cost is not None
        and guest.name in placed
        and guest.destination == destination.address
    ]


def _memory_left(
    destination: Destination, guests: Mapping[str, Guest], placed: set[str]
) -> int | None:
    if destination.memory_bytes is None:
        return None
    used = sum(cost.resident_bytes for cost in _costs_at(destination, guests, placed))
    return destination.memory_bytes - used


def _swap_left(
    destination: Destination, guests: Mapping[str, Guest], placed: set[str]
) -> int | None:
    if destination.swap_bytes is None:
        return None
    used = sum(cost.swapped_bytes for cost in _costs_at(destination, guests, placed))
    return destination.swap_bytes - used
