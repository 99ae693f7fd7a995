"""The world that the ownership protocol lives in: its states, and what can happen beside the steps.

One state is everything that counts for who owns the guest: where each side's worker and settler
are, both journals as they are on disk, both QEMUs, what is under way on the control connection and
what a query was answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.policy.ownership import RULES, DestinationStep, Rules, SourceStep

NO_JOURNAL = "no-journal"

SAID = "said"
"""The source's step SAY_COMMIT once the message has left: it waits for the answer."""

# Messages on the control connection that count here.
PREPARE, STATE, COMMIT, ABORT = "prepare-device", "device-state", "commit", "abort"
READY, LOADED, RUNNING, NEVER = "device-ready", "device-loaded", "running", "never"

# The source's QEMU: the guest runs; stopped, its migration under way; stopped, migration completed;
# told to resume and not heard of; ended; ended, and another one answers at its socket.
S_RUNS, S_STOPPED, S_COMPLETED, S_PENDING, S_GONE = "runs", "stopped", "completed", "pending", "-"
OTHER = "another"

# The destination's: waiting for a guest; loaded and paused; told to run and not heard of; the guest
# runs; ended; ended, and another one answers at its socket.
D_WAITS, D_LOADED, D_PENDING, D_RUNS, D_GONE = "waits", "loaded", "pending", "runs", "-"


class World(NamedTuple):
    """One state. Steps and phases by their names; None for a process that is not there."""

    source_worker: str | None = SourceStep.CARRY.value
    source_settler: str | None = None
    source_journal: str = SourcePhase.ROUNDS.value
    source_qemu: str = S_RUNS
    destination_worker: str | None = DestinationStep.RECEIVE.value
    destination_settler: str | None = None
    destination_journal: str = DestinationPhase.RECEIVING.value
    destination_qemu: str = D_WAITS
    connected: bool = True
    to_destination: tuple[str, ...] = ()
    to_source: tuple[str, ...] = ()
    answer: str | None = None
    """The phase that an answer under way says, which may be old by the time it is heard."""
    demand: bool = False
    """Whether the source's demand that the destination gives the guest up is under way."""
    came_back: bool = False
    """Whether the guest ran on the source after it had been stopped for the switchover."""
    ran: bool = False
    """Whether the guest ever ran on the destination."""
    reclaimed: bool = False
    """Whether an operator has said that the destination is gone for good."""

    def changed(self, **changes: Any) -> World:
        """This state with fields changed that are named at run time."""
        return self._replace(**changes)


class Move(NamedTuple):
    """What happens, whether something has to go wrong for it, and the state that follows."""

    name: str
    is_fault: bool
    after: World


class WorldError(Exception):
    """A move that breaks a rule which no state shows."""


@dataclass(frozen=True, slots=True)
class Physics:
    """What the world guarantees beside the rules."""

    rules: Rules = RULES
    journal_is_locked: bool = True
    """Whether a settler keeps off while a worker lives."""
    qemu_is_identified: bool = True
    """Whether another QEMU at the same socket is told from the one that the journal is about."""
    phases_are_checked: bool = True
    """Whether a journal refuses a phase that may not follow; off, to see what comes of it."""
    demand_waits_for_the_journal: bool = True
    """Whether a demand is answered only when the destination's journal has the promise."""
    word_is_true: bool = True
    """Whether the destination's host is really switched off when an operator says so."""
    journal_can_be_lost: bool = False
    """Whether the destination's state directory can be lost. Then nobody can promise an end."""
