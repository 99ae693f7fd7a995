"""What a soak does, step by step, all of it from the seed. Pure.

The same seed gives the same steps: which guest goes next, with which options, what breaks, and at
which point of the migration. When exactly that point comes is up to the machine, so a seed repeats
what was done and not the race that it met.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pageferry.model.phase import DestinationPhase, SourcePhase


class Fault(StrEnum):
    """What happens to a migration. The values are what reports call it."""

    NONE = "none"
    CANCEL = "cancel"
    KILL_SOURCE_WORKER = "kill-source-worker"
    KILL_DESTINATION_WORKER = "kill-destination-worker"
    KILL_BOTH_WORKERS = "kill-both-workers"
    KILL_SOURCE_DAEMON = "kill-source-daemon"
    KILL_DESTINATION_DAEMON = "kill-destination-daemon"
    KILL_BOTH_AGENTS = "kill-both-agents"
    """Both daemons and both workers: all of pageferry at once."""
    KILL_DESTINATION_QEMU = "kill-destination-qemu"
    """Only before the guest is its own; later it would be an end of the guest, not of a
    migration."""
    STOP_SOURCE_WORKER = "stop-source-worker"
    STOP_DESTINATION_WORKER = "stop-destination-worker"
    STOP_DESTINATION_QEMU = "stop-destination-qemu"
    CUT = "cut"
    """All TCP connections between the agents end."""
    SILENCE = "silence"
    """Nothing gets through for a while; no connection ends."""


class Settling(StrEnum):
    """Who settles what was left open: the daemons by themselves, or an operator besides."""

    DAEMONS = "daemons"
    RECOVER_AT_SOURCE = "recover-at-source"
    RECOVER_AT_DESTINATION = "recover-at-destination"


HOLDING = frozenset(
    {
        Fault.STOP_SOURCE_WORKER,
        Fault.STOP_DESTINATION_WORKER,
        Fault.STOP_DESTINATION_QEMU,
        Fault.SILENCE,
    }
)
"""Those that last for a while, and are then over."""

GUESTS = ("freestanding", "linux")

FREQUENT = 3
"""How often undisturbed hops and cancels are in a bag that holds each other fault once."""

OPTIONS: Mapping[str, tuple[object, ...]] = {
    "verify": (True, False, False, False),
    "channels": (1, 2, 4),
    "compression": ("off", "off", "auto"),
}
"""Parameters of `migrate`, and the values that they get."""

SOURCE_PHASES = tuple(SourcePhase)[: tuple(SourcePhase).index(SourcePhase.RECLAIMED)]
DESTINATION_PHASES = tuple(DestinationPhase)[
    : tuple(DestinationPhase).index(DestinationPhase.REFUSED)
]

LONGEST_DELAY_MS = 40.0
LONGEST_HOLD_S = 4.0


@dataclass(frozen=True, slots=True)
class Moment:
    """When it happens: so long after that phase is in the journal of that role."""

    role: str
    phase: str
    delay_ms: float

    def __str__(self) -> str:
        return f"{self.delay_ms:.1f} ms after {self.role}:{self.phase}"


@dataclass(frozen=True, slots=True)
class Step:
    """One migration of one guest, from wherever it is to the other host."""

    number: int
    guest: str
    options: Mapping[str, object]
    fault: Fault
    moment: Moment
    hold_s: float
    settling: Settling

    def __str__(self) -> str:
        words = [f"{self.number}: {self.guest}"]
        words += [f"{name}={value}" for name, value in self.options.items()]
        if self.fault is not Fault.NONE:
            words.append(f"{self.fault.value} {self.moment}")
            if self.fault in HOLDING:
                words.append(f"for {self.hold_s:.1f} s")
            words.append(f"settled by {self.settling.value}")
        return " ".join(words)


def steps(seed: int) -> Iterator[Step]:
    """The steps of this seed, without end. Each bag of faults is used up before the next begins."""
    chance = random.Random(seed)
    number = 0
    while True:
        bag = list(Fault) + [Fault.NONE, Fault.CANCEL] * (FREQUENT - 1)
        chance.shuffle(bag)
        for fault in bag:
            number += 1
            yield _step(chance, number, fault)


def _step(chance: random.Random, number: int, fault: Fault) -> Step:
    options = {name: chance.choice(values) for name, values in OPTIONS.items()}
    return Step(
        number=number,
        guest=GUESTS[number % len(GUESTS)],
        options=options,
        fault=fault,
        moment=_moment(chance, fault),
        hold_s=chance.uniform(0.2, LONGEST_HOLD_S),
        settling=chance.choice(tuple(Settling)),
    )


def _moment(chance: random.Random, fault: Fault) -> Moment:
    role = chance.choice(("source", "destination"))
    phases: tuple[SourcePhase | DestinationPhase, ...]
    phases = SOURCE_PHASES if role == "source" else DESTINATION_PHASES
    if fault in (Fault.CANCEL, Fault.KILL_DESTINATION_QEMU):
        # Later ones would mostly be too late.
        phases = phases[:-1]
    # A phase of the switchover is over in a millisecond or two; others last.
    delay_ms = chance.choice((0.0, chance.uniform(0, 5), chance.uniform(0, LONGEST_DELAY_MS)))
    return Moment(role, chance.choice(phases).value, delay_ms)
