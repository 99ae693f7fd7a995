"""How far a migration has come, as each side writes it to its journal before it acts on it.

The phases decide who owns the guest after a crash, so the order matters more than the names::

    source        look -> arm -> cold -> resident -> rounds -> switchover -> device -> commit
                                                                                        |
                  cancelled, failed  <- from any of these up to device                  v
                  (the source owns the guest)           completed, or failed, or reclaimed -> failed

    destination   ready -> receiving -> device -> loaded -> committed -> running, or lost
                  aborted  <- from any of these up to loaded       |
                  aborted  <--------------------------------- refused

The source may pass over a pass that has nothing to do (no cold pages: arm -> resident). ``commit``
is written before Commit is sent, and means: said, outcome unknown. It ends as ``completed`` when
the destination says that it runs the guest, and as ``failed`` only when the destination says that
it durably never will. ``reclaimed`` says that an operator has given their word that the destination
is gone for good; the guest is taken back by it.

The destination writes ``committed`` when it has been told to run the guest and before it lets it
run, ``running`` after QEMU confirmed it. ``refused`` says that QEMU would not run it, so that it
never ran there; ``lost`` that QEMU ended before it was known to run it, so that it may have run.
``aborted`` is a promise: the guest will never be started there, whatever is said or restarted
later; it is written when the destination QEMU cannot run it any more, and before the source hears
of it.

What each side does next, and what a phase means after a crash, is in ``policy.ownership``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeVar

from pageferry.model.errors import LocalProtocolError

NO_JOURNAL: Final = "no-journal"
"""The phase that is reported for a migration of which there is no journal."""


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
    RECLAIMED = "reclaimed"
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
    REFUSED = "refused"
    RUNNING = "running"
    LOST = "lost"
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
    _S.COMMIT: frozenset({_S.COMPLETED, _S.FAILED, _S.RECLAIMED}),
    _S.RECLAIMED: frozenset({_S.FAILED}),
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
    # Not ABORTED: from here on only QEMU's own refusal proves that the guest has not run here.
    _D.COMMITTED: frozenset({_D.REFUSED, _D.RUNNING, _D.LOST}),
    _D.REFUSED: frozenset({_D.ABORTED}),
    _D.RUNNING: frozenset(),
    _D.LOST: frozenset(),
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


def phase_of(role: str, name: str) -> SourcePhase | DestinationPhase:
    """The phase *name* of that side. Raises ValueError for a name that is none."""
    return SourcePhase(name) if role == "source" else DestinationPhase(name)
