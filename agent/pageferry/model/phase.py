"""How far a migration has come, as each side writes it to its journal before it acts on it.

The phases decide who owns the guest after a crash, so the order matters more than the names::

    source        look -> arm -> cold -> resident -> rounds -> switchover -> device -> commit
                                                                                        |
                  cancelled, failed  <- from any of these up to device                  v
                  (the source owns the guest)                           completed, or failed

    destination   ready -> receiving -> device -> loaded -> committed -> running
                  aborted  <- from any of these up to committed

The source may pass over a pass that has nothing to do (no cold pages: arm -> resident). ``commit``
is written before Commit is sent, and means: said, outcome unknown. It ends as ``completed`` when
the destination says that it runs the guest, and as ``failed`` only when the destination says that
it durably never will.

The destination writes ``committed`` when it has been told to run the guest and before it lets it
run, ``running`` after QEMU confirmed it. ``aborted`` is a promise: the guest will never be started
there, whatever is said or restarted later; it is written, and the destination QEMU made unable to
run, before the source hears of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from pageferry.model.errors import LocalProtocolError


class SourcePhase(StrEnum):
    """Phases of the source. The values are the names in the journal and in ``query-migrate``."""

    LOOK = "look"
    ARM = "arm"
    COLD = "cold"
    RESIDENT = "resident"
    ROUNDS = "rounds"
    SWITCHOVER = "switchover"
    DEVICE = "device"
    COMMIT = "commit"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"


class DestinationPhase(StrEnum):
    """Phases of the destination. The values are the names in the journal and in QueryReply."""

    READY = "ready"
    RECEIVING = "receiving"
    DEVICE = "device"
    LOADED = "loaded"
    COMMITTED = "committed"
    RUNNING = "running"
    ABORTED = "aborted"


_S = SourcePhase
_D = DestinationPhase
_GIVEN_UP = frozenset({_S.CANCELLED, _S.FAILED})

SOURCE_TRANSITIONS: Mapping[SourcePhase, frozenset[SourcePhase]] = {
    _S.LOOK: frozenset({_S.ARM}) | _GIVEN_UP,
    _S.ARM: frozenset({_S.COLD, _S.RESIDENT, _S.ROUNDS}) | _GIVEN_UP,
    _S.COLD: frozenset({_S.RESIDENT, _S.ROUNDS}) | _GIVEN_UP,
    _S.RESIDENT: frozenset({_S.ROUNDS, _S.SWITCHOVER}) | _GIVEN_UP,
    _S.ROUNDS: frozenset({_S.SWITCHOVER}) | _GIVEN_UP,
    _S.SWITCHOVER: frozenset({_S.DEVICE}) | _GIVEN_UP,
    _S.DEVICE: frozenset({_S.COMMIT}) | _GIVEN_UP,
    # Not CANCELLED: after the commit there is nothing that an operator could still cancel.
    _S.COMMIT: frozenset({_S.COMPLETED, _S.FAILED}),
    _S.COMPLETED: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.FAILED: frozenset(),
}
"""Legal transitions of the source: from each phase, the ones that may follow."""

DESTINATION_TRANSITIONS: Mapping[DestinationPhase, frozenset[DestinationPhase]] = {
    _D.READY: frozenset({_D.RECEIVING, _D.ABORTED}),
    _D.RECEIVING: frozenset({_D.DEVICE, _D.ABORTED}),
    _D.DEVICE: frozenset({_D.LOADED, _D.ABORTED}),
    _D.LOADED: frozenset({_D.COMMITTED, _D.ABORTED}),
    # To ABORTED when QEMU refused to run the guest and has been made unable to: CommitFailed.
    _D.COMMITTED: frozenset({_D.RUNNING, _D.ABORTED}),
    _D.RUNNING: frozenset(),
    _D.ABORTED: frozenset(),
}
"""Legal transitions of the destination: from each phase, the ones that may follow."""

Phase = TypeVar("Phase", SourcePhase, DestinationPhase)


def may_follow(old: Phase, new: Phase) -> bool:
    """Whether *new* may be written to the journal after *old*. A phase does not follow itself."""
    if isinstance(old, SourcePhase):
        return new in SOURCE_TRANSITIONS[old]
    return new in DESTINATION_TRANSITIONS[old]


def check_transition(old: Phase, new: Phase) -> None:
    """Raise LocalProtocolError when *new* may not follow *old*; whoever asked keeps its phase."""
    if not may_follow(old, new):
        raise LocalProtocolError(f"phase {new.value} cannot follow phase {old.value}")


def is_over(phase: SourcePhase | DestinationPhase) -> bool:
    """Whether nothing follows this phase any more, so that recovery has nothing to settle."""
    if isinstance(phase, SourcePhase):
        return not SOURCE_TRANSITIONS[phase]
    return not DESTINATION_TRANSITIONS[phase]


def owner_may_resume(source_phase: SourcePhase, destination_phase: DestinationPhase | None) -> bool:
    """Whether the source may let the guest run, by what both journals say.

    *destination_phase* is None when the destination cannot be asked, or knows nothing of this
    migration. True means that the destination provably has not started the guest and never will:

    - Before ``commit`` the destination has not been told to run, so the source owns the guest and
      needs no answer. (It must see to it that no Commit is sent afterwards: it writes ``cancelled``
      or ``failed`` before it resumes.)
    - In ``commit`` only ``aborted`` will do. ``loaded`` and everything before it will not: Commit
      may still be under way to a destination that has just answered. Nor will silence: it may run
      there. Nor will a destination that knows nothing: its journal may have been lost.
    - In ``completed`` never.
    - A destination that says ``committed`` or ``running`` contradicts a source that never said
      commit. Then one journal is wrong, and a person must look: False.
    """
    if destination_phase in (DestinationPhase.COMMITTED, DestinationPhase.RUNNING):
        return False
    if source_phase is SourcePhase.COMPLETED:
        return False
    if source_phase is SourcePhase.COMMIT:
        return destination_phase is DestinationPhase.ABORTED
    return True


def destination_may_run(destination_phase: DestinationPhase) -> bool:
    """Whether the destination may let the guest run (again): only once it has been told to."""
    return destination_phase in (DestinationPhase.COMMITTED, DestinationPhase.RUNNING)
