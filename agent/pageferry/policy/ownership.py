"""Who owns the guest: the state machine of either side, as tables. Pure.

Theory of operation
===================

The state of a side is a *step*, and each step is one thing to be done: a record to be written, a
word to be said, a command for QEMU. What comes of it is an *event*, and the table says which step
follows. Whoever does the steps (``migration/commit.py``, ``reception.py``, ``recovery.py``) decides
nothing: it does what the step says, reports what came of it, and gets the next step. A step without
a row for an event cannot have that event: whoever offers it gets LocalProtocolError.

A process that died goes on from its journal: RESUMES_AT says with which step, for each phase. So
the same tables are recovery.

What the tables rest on (``testing/ownership`` explores all of it):

- A record that failed may be found later all the same, or not. Both must be right.
- ``cont`` that QEMU *refused* has never run the guest: QEMU checks before it starts anything. When
  QEMU did not answer, or is gone, the guest may have run and written to its disks, and then the
  memory that the source still has is too old for good.
- The word that the destination is gone for good is an operator's, and true: its host is switched
  off or fenced, no QEMU there runs any more, and none will go on from where it was.
- Nothing takes effect on QEMU from a process that has ended, and no two processes work on one
  journal (it is locked).

docs/ownership.md shows the tables, and is checked against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from pageferry.model.errors import LocalProtocolError
from pageferry.model.phase import DestinationPhase, SourcePhase


class SourceStep(Enum):
    """What the source does next. The last four are ends."""

    CARRY = "carry"
    HAND_OVER = "hand-over"
    RECORD_COMMIT = "record-commit"
    SAY_COMMIT = "say-commit"
    ASK = "ask"
    RECORD_RECLAIMED = "record-reclaimed"
    TAKE_BACK = "take-back"
    RECORD_KEPT = "record-kept"
    RECORD_GIVEN_AWAY = "record-given-away"
    RECORD_LOST = "record-lost"
    KEPT = "kept"
    GIVEN_AWAY = "given-away"
    LOST = "lost"
    LEFT_OPEN = "left-open"


class SourceEvent(Enum):
    """What came of the source's step."""

    STOPPING = "stopping"
    ARRIVED = "arrived"
    GIVE_UP = "give-up"
    RECORDED = "recorded"
    NOT_RECORDED = "not-recorded"
    HEARD_RUNNING = "heard-running"
    HEARD_NEVER = "heard-never"
    HEARD_NOTHING = "heard-nothing"
    TOLD_RUNNING = "told-running"
    TOLD_ABORTED = "told-aborted"
    TOLD_LOST = "told-lost"
    TOLD_UNDECIDED = "told-undecided"
    ASKED_ENOUGH = "asked-enough"
    DECLARED_GONE = "declared-gone"
    IS_BACK = "is-back"
    QEMU_STUCK = "qemu-stuck"
    QEMU_GONE = "qemu-gone"


class DestinationStep(Enum):
    """What the destination does next. The last four are ends."""

    RECEIVE = "receive"
    LOAD = "load"
    RECORD_LOADED = "record-loaded"
    AWAIT_COMMIT = "await-commit"
    RECORD_COMMITTED = "record-committed"
    RUN = "run"
    RUN_AGAIN = "run-again"
    RECORD_RUNNING = "record-running"
    RECORD_REFUSED = "record-refused"
    RECORD_LOST = "record-lost"
    END_QEMU = "end-qemu"
    RECORD_ABORTED = "record-aborted"
    TAKEN = "taken"
    NEVER = "never"
    LOST = "lost"
    LEFT_OPEN = "left-open"


class DestinationEvent(Enum):
    """What came of the destination's step."""

    PREPARING = "preparing"
    LOADED = "loaded"
    HEARD_COMMIT = "heard-commit"
    GIVE_UP = "give-up"
    RECORDED = "recorded"
    NOT_RECORDED = "not-recorded"
    RUNS = "runs"
    REFUSED = "refused"
    NO_ANSWER = "no-answer"
    QEMU_GONE = "qemu-gone"
    QEMU_STUCK = "qemu-stuck"


_S, _SE, _SP = SourceStep, SourceEvent, SourcePhase
_D, _DE, _DP = DestinationStep, DestinationEvent, DestinationPhase

SourceTable = Mapping[SourceStep, Mapping[SourceEvent, SourceStep]]
DestinationTable = Mapping[DestinationStep, Mapping[DestinationEvent, DestinationStep]]

SOURCE: Final[SourceTable] = {
    # QEMU's own migration has not begun: there is nothing to take back.
    _S.CARRY: {_SE.STOPPING: _S.HAND_OVER, _SE.GIVE_UP: _S.RECORD_KEPT},
    _S.HAND_OVER: {_SE.ARRIVED: _S.RECORD_COMMIT, _SE.GIVE_UP: _S.TAKE_BACK},
    # From here on nothing is given up any more: neither a cancel nor a lost connection counts.
    # What could not be recorded is not said, and so the guest is still ours.
    _S.RECORD_COMMIT: {_SE.RECORDED: _S.SAY_COMMIT, _SE.NOT_RECORDED: _S.TAKE_BACK},
    _S.SAY_COMMIT: {
        _SE.HEARD_RUNNING: _S.RECORD_GIVEN_AWAY,
        _SE.HEARD_NEVER: _S.TAKE_BACK,
        _SE.HEARD_NOTHING: _S.ASK,
    },
    _S.ASK: {
        _SE.TOLD_RUNNING: _S.RECORD_GIVEN_AWAY,
        _SE.TOLD_ABORTED: _S.TAKE_BACK,
        _SE.TOLD_LOST: _S.RECORD_LOST,
        _SE.TOLD_UNDECIDED: _S.ASK,
        _SE.ASKED_ENOUGH: _S.LEFT_OPEN,
        # An operator's word that the destination is gone for good: the one way on without an answer
        # from there. Only as true as the word is.
        _SE.DECLARED_GONE: _S.RECORD_RECLAIMED,
    },
    # Recorded before the guest is back: else a destination that comes back after all could tell a
    # later settler that it has the guest. A record that is found later is still the word.
    _S.RECORD_RECLAIMED: {_SE.RECORDED: _S.TAKE_BACK, _SE.NOT_RECORDED: _S.LEFT_OPEN},
    # Not recorded as kept while it is not back: whoever reads the journal next must try again.
    _S.TAKE_BACK: {
        _SE.IS_BACK: _S.RECORD_KEPT,
        _SE.QEMU_GONE: _S.RECORD_KEPT,
        _SE.QEMU_STUCK: _S.LEFT_OPEN,
    },
    # That a fact could not be recorded does not change it; the journal is settled later.
    _S.RECORD_KEPT: {_SE.RECORDED: _S.KEPT, _SE.NOT_RECORDED: _S.KEPT},
    _S.RECORD_GIVEN_AWAY: {_SE.RECORDED: _S.GIVEN_AWAY, _SE.NOT_RECORDED: _S.GIVEN_AWAY},
    _S.RECORD_LOST: {_SE.RECORDED: _S.LOST, _SE.NOT_RECORDED: _S.LOST},
}
"""The source: from each step, what may come of it, and the step that follows."""

DESTINATION: Final[DestinationTable] = {
    # Nothing is in QEMU yet: it need not be ended, and can take the next guest.
    _D.RECEIVE: {_DE.PREPARING: _D.LOAD, _DE.GIVE_UP: _D.RECORD_ABORTED},
    _D.LOAD: {_DE.LOADED: _D.RECORD_LOADED, _DE.GIVE_UP: _D.END_QEMU},
    _D.RECORD_LOADED: {
        _DE.RECORDED: _D.AWAIT_COMMIT,
        _DE.NOT_RECORDED: _D.END_QEMU,
        _DE.GIVE_UP: _D.END_QEMU,
    },
    _D.AWAIT_COMMIT: {_DE.HEARD_COMMIT: _D.RECORD_COMMITTED, _DE.GIVE_UP: _D.END_QEMU},
    # From here on nothing is given up any more. Without the record nothing may run, and what may
    # yet be found in the journal allows no promise either.
    _D.RECORD_COMMITTED: {_DE.RECORDED: _D.RUN, _DE.NOT_RECORDED: _D.LEFT_OPEN},
    _D.RUN: {
        _DE.RUNS: _D.RECORD_RUNNING,
        # The one proof that it never ran. It is recorded, since only this process has it.
        _DE.REFUSED: _D.RECORD_REFUSED,
        _DE.NO_ANSWER: _D.LEFT_OPEN,
        _DE.QEMU_GONE: _D.RECORD_LOST,
    },
    # From the journal: it may have run before, so that a refusal now proves nothing.
    _D.RUN_AGAIN: {
        _DE.RUNS: _D.RECORD_RUNNING,
        _DE.REFUSED: _D.LEFT_OPEN,
        _DE.NO_ANSWER: _D.LEFT_OPEN,
        _DE.QEMU_GONE: _D.RECORD_LOST,
    },
    # It runs, and `committed` is recorded: the source may hear of it either way.
    _D.RECORD_RUNNING: {_DE.RECORDED: _D.TAKEN, _DE.NOT_RECORDED: _D.TAKEN},
    _D.RECORD_REFUSED: {_DE.RECORDED: _D.END_QEMU, _DE.NOT_RECORDED: _D.LEFT_OPEN},
    _D.RECORD_LOST: {_DE.RECORDED: _D.LOST, _DE.NOT_RECORDED: _D.LEFT_OPEN},
    # First QEMU ends, then it is recorded: a source that asks reads the journal.
    _D.END_QEMU: {_DE.QEMU_GONE: _D.RECORD_ABORTED, _DE.QEMU_STUCK: _D.LEFT_OPEN},
    _D.RECORD_ABORTED: {_DE.RECORDED: _D.NEVER, _DE.NOT_RECORDED: _D.LEFT_OPEN},
}
"""The destination: from each step, what may come of it, and the step that follows."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that decides who owns the guest."""

    source: SourceTable
    destination: DestinationTable
    source_records: Mapping[SourceStep, SourcePhase]
    """The phase that a step writes to the source's journal."""
    destination_records: Mapping[DestinationStep, DestinationPhase]
    source_resumes_at: Mapping[SourcePhase, SourceStep]
    """Where the source goes on whose process died, by the last phase in its journal."""
    destination_resumes_at: Mapping[DestinationPhase, DestinationStep]
    told: Mapping[str, SourceEvent]
    """What the phase in the destination's journal means to a source that asks. All others, those
    that are not known here too, mean TOLD_UNDECIDED."""


RULES: Final = Rules(
    source=SOURCE,
    destination=DESTINATION,
    source_records={
        _S.RECORD_COMMIT: _SP.COMMIT,
        _S.RECORD_RECLAIMED: _SP.RECLAIMED,
        # Or CANCELLED, before the commit, where that was the reason: it means the same.
        _S.RECORD_KEPT: _SP.FAILED,
        _S.RECORD_GIVEN_AWAY: _SP.COMPLETED,
        _S.RECORD_LOST: _SP.COMPLETED,
    },
    destination_records={
        _D.RECORD_LOADED: _DP.LOADED,
        _D.RECORD_COMMITTED: _DP.COMMITTED,
        _D.RECORD_RUNNING: _DP.RUNNING,
        _D.RECORD_REFUSED: _DP.REFUSED,
        _D.RECORD_LOST: _DP.LOST,
        _D.RECORD_ABORTED: _DP.ABORTED,
    },
    source_resumes_at={
        **dict.fromkeys((_SP.LOOK, _SP.ARM, _SP.COLD, _SP.RESIDENT, _SP.ROUNDS), _S.RECORD_KEPT),
        _SP.SWITCHOVER: _S.TAKE_BACK,
        _SP.DEVICE: _S.TAKE_BACK,
        # Whether it was said is not known, so it counts as said.
        _SP.COMMIT: _S.ASK,
        _SP.RECLAIMED: _S.TAKE_BACK,
        _SP.COMPLETED: _S.GIVEN_AWAY,
        _SP.CANCELLED: _S.KEPT,
        _SP.FAILED: _S.KEPT,
    },
    destination_resumes_at={
        _DP.READY: _D.RECORD_ABORTED,
        _DP.RECEIVING: _D.RECORD_ABORTED,
        _DP.DEVICE: _D.END_QEMU,
        _DP.LOADED: _D.END_QEMU,
        _DP.COMMITTED: _D.RUN_AGAIN,
        _DP.REFUSED: _D.END_QEMU,
        _DP.RUNNING: _D.TAKEN,
        _DP.LOST: _D.LOST,
        _DP.ABORTED: _D.NEVER,
    },
    told={
        _DP.RUNNING.value: _SE.TOLD_RUNNING,
        _DP.ABORTED.value: _SE.TOLD_ABORTED,
        _DP.LOST.value: _SE.TOLD_LOST,
    },
)


def source_after(step: SourceStep, event: SourceEvent, rules: Rules = RULES) -> SourceStep:
    """The source's next step. Raises LocalProtocolError when *event* cannot come of *step*."""
    try:
        return rules.source[step][event]
    except KeyError:
        raise LocalProtocolError(f"{event.value} cannot come of the step {step.value}") from None


def destination_after(
    step: DestinationStep, event: DestinationEvent, rules: Rules = RULES
) -> DestinationStep:
    """The destination's next step. Raises LocalProtocolError when *event* cannot come of *step*."""
    try:
        return rules.destination[step][event]
    except KeyError:
        raise LocalProtocolError(f"{event.value} cannot come of the step {step.value}") from None


def told(phase: str, rules: Rules = RULES) -> SourceEvent:
    """What it means to a source that asks when the destination's journal says *phase*."""
    return rules.told.get(phase, SourceEvent.TOLD_UNDECIDED)


def may_demand(phase: str, rules: Rules = RULES) -> bool:
    """Whether a source that asks, and hears that the destination's journal says *phase*, may demand
    that the destination gives the guest up: by that phase it would do so after a crash.

    The demand is no event of its own. To a worker there it is a cancel, which comes before Commit
    or too late; without a worker the journal is settled. Only the promise that follows counts.
    """
    try:
        step = rules.destination_resumes_at[DestinationPhase(phase)]
    except ValueError:
        return False
    return step in (DestinationStep.RECORD_ABORTED, DestinationStep.END_QEMU)


def may_give_up(step: SourceStep | DestinationStep, rules: Rules = RULES) -> bool:
    """Whether a failure or a cancel still ends the migration in this step."""
    if isinstance(step, SourceStep):
        return SourceEvent.GIVE_UP in rules.source.get(step, {})
    return DestinationEvent.GIVE_UP in rules.destination.get(step, {})


def is_end(step: SourceStep | DestinationStep) -> bool:
    """Whether no step follows."""
    return step not in (SOURCE if isinstance(step, SourceStep) else DESTINATION)
