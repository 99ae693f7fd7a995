"""What is struck, when, and whose the guest may be afterwards. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from pageferry.model.phase import DestinationPhase, SourcePhase

S, D = SourcePhase, DestinationPhase

Phase = SourcePhase | DestinationPhase


class Fault(Enum):
    """What befalls a migration. The value is what the table calls it."""

    SOURCE_WORKER_KILLED = "source's worker killed"
    DESTINATION_WORKER_KILLED = "destination's worker killed"
    SOURCE_DAEMON_KILLED = "source's pageferryd killed"
    DESTINATION_DAEMON_KILLED = "destination's pageferryd killed"
    SOURCE_QEMU_KILLED = "source's QEMU killed"
    DESTINATION_QEMU_KILLED = "destination's QEMU killed"
    SOURCE_WORKER_HANGS = "source's worker hangs"
    DESTINATION_WORKER_HANGS = "destination's worker hangs"
    SOURCE_QEMU_HANGS = "source's QEMU hangs"
    DESTINATION_QEMU_HANGS = "destination's QEMU hangs"
    CANCELLED_AT_SOURCE = "cancelled at the source"
    CANCELLED_AT_DESTINATION = "cancelled at the destination"
    SECOND_MIGRATION = "second migration of the guest"
    NETWORK_CUT = "network cut"
    NETWORK_HALF_OPEN = "network lets nothing back to the source"
    NETWORK_SLOW = "network slow"
    JOURNAL_FULL = "no room for the phase's record"
    SOURCE_DISK_FULL = "source's state directory full"
    DESTINATION_DISK_FULL = "destination's state directory full"
    SWAP_FULL = "swap full"
    SWAP_UNREADABLE = "swap cannot be read"
    DESTINATION_OUT_OF_MEMORY = "destination's cgroup out of memory"


F = Fault


class Owner(Enum):
    """Whose the guest is in the end. The value is what the table calls it."""

    SOURCE = "source"
    DESTINATION = "destination"
    ENDED = "ended with its QEMU"


@dataclass(frozen=True, slots=True)
class Case:
    """One fault in one phase."""

    phase: Phase
    fault: Fault

    @property
    def role(self) -> str:
        """Whose phase it is."""
        return "source" if isinstance(self.phase, SourcePhase) else "destination"

    @property
    def name(self) -> str:
        """What pytest calls it."""
        return f"{self.role}-{self.phase.value}-{self.fault.name.lower().replace('_', '-')}"


SOURCE_WAY: Final = (S.LOOK, S.ARM, S.COLD, S.RESIDENT, S.ROUNDS, S.SWITCHOVER, S.DEVICE, S.COMMIT)
DESTINATION_WAY: Final = (D.READY, D.RECEIVING, D.DEVICE, D.LOADED, D.COMMITTED, D.RUNNING)
"""The phases that a migration passes on its way, in which faults strike."""

ENDS: Final = frozenset(
    {S.RECLAIMED, S.COMPLETED, S.CANCELLED, S.FAILED, D.REFUSED, D.LOST, D.ABORTED}
)
"""Phases in which a migration is over, or that only a fault or an operator's word leads to: being
killed in them is what tests/recovery is about."""

WAY: Final[tuple[Phase, ...]] = (*SOURCE_WAY, *DESTINATION_WAY)

IN_FLIGHT: Final[Mapping[Phase, Phase]] = {
    S.COLD: S.RESIDENT,
    S.RESIDENT: S.ROUNDS,
    S.ROUNDS: S.SWITCHOVER,
}
"""Phases that last, in which the fault strikes amid the sending: it strikes before the next phase,
which is held, is acted on. In all others it strikes when the phase is on disk, and nothing else
done."""

NOT_THERE: Final = frozenset(
    {
        Case(S.LOOK, F.DESTINATION_WORKER_KILLED),
        Case(S.LOOK, F.DESTINATION_WORKER_HANGS),
        Case(S.LOOK, F.CANCELLED_AT_DESTINATION),
    }
)
"""The destination does not know of the migration yet."""

ONLY_IN: Final[Mapping[Fault, tuple[Phase, ...]]] = {
    # Before anything begins; see JOURNAL_FULL for the phases.
    F.SOURCE_DISK_FULL: (S.LOOK,),
    F.DESTINATION_DISK_FULL: (D.READY,),
    # Where swap is read and written, and where memory is allocated.
    F.SWAP_FULL: (S.LOOK, S.COLD, S.ROUNDS),
    F.SWAP_UNREADABLE: (S.LOOK,),
    F.DESTINATION_OUT_OF_MEMORY: (D.RECEIVING, S.COLD, S.RESIDENT),
}
"""Faults that are not for every phase."""

ALONE: Final = frozenset({F.SWAP_FULL, F.SWAP_UNREADABLE})
"""Faults of the whole host: no other case may run beside them."""

MATRIX: Final = tuple(
    case
    for fault in Fault
    for phase in WAY
    if (case := Case(phase, fault)) not in NOT_THERE and phase in ONLY_IN.get(fault, WAY)
)

COMMITTED: Final = frozenset({D.COMMITTED, D.RUNNING})
"""The source has said Commit, and the destination has written it down."""

BOTH: Final = frozenset({Owner.SOURCE, Owner.DESTINATION})

HARMLESS: Final = frozenset({F.SECOND_MIGRATION, F.NETWORK_SLOW, F.SWAP_FULL})


def owners(case: Case) -> frozenset[Owner]:
    """Whose the guest may be. More than one where it depends on what is said first."""
    phase, fault = case.phase, case.fault
    if fault in HARMLESS:
        return frozenset({Owner.DESTINATION})
    if case in SPECIAL:
        return SPECIAL[case]
    if phase in COMMITTED:
        return frozenset({Owner.DESTINATION})
    if fault is F.SOURCE_QEMU_KILLED:
        return frozenset({Owner.ENDED})
    return frozenset({Owner.SOURCE})


def _one(owner: Owner) -> frozenset[Owner]:
    return frozenset({owner})


SPECIAL: Final = {
    # Nobody has called it yet, and one that was started again may listen by then (both were seen).
    Case(S.LOOK, F.DESTINATION_DAEMON_KILLED): BOTH,
    # Nothing asks the source's QEMU for anything any more.
    Case(S.COMMIT, F.SOURCE_QEMU_KILLED): _one(Owner.DESTINATION),
    Case(S.COMMIT, F.SOURCE_QEMU_HANGS): _one(Owner.DESTINATION),
    # The destination may say that all is loaded before the source sees its QEMU gone.
    Case(D.LOADED, F.SOURCE_QEMU_KILLED): frozenset({Owner.ENDED, Owner.DESTINATION}),
    # The commit is on disk, so that neither an operator nor a daemon's death can cancel it.
    Case(S.COMMIT, F.CANCELLED_AT_SOURCE): _one(Owner.DESTINATION),
    Case(S.COMMIT, F.SOURCE_DAEMON_KILLED): _one(Owner.DESTINATION),
    # Either the destination gives up first, or it hears Commit first.
    Case(S.COMMIT, F.CANCELLED_AT_DESTINATION): BOTH,
    Case(S.COMMIT, F.DESTINATION_DAEMON_KILLED): BOTH,
    Case(S.COMMIT, F.DESTINATION_WORKER_HANGS): BOTH,
    # Commit gets there; that the guest runs is learnt when the network is back.
    Case(S.COMMIT, F.NETWORK_HALF_OPEN): BOTH,
    # A drain waits for as long as storage may take, and the rest needs no answer; see the phase.
    **{
        Case(phase, F.SOURCE_QEMU_HANGS): BOTH
        for phase in (S.ARM, S.COLD, S.RESIDENT, S.ROUNDS, D.READY, D.RECEIVING, D.LOADED)
    },
    # Nobody waits for it yet.
    Case(S.LOOK, F.SOURCE_WORKER_HANGS): _one(Owner.DESTINATION),
    # Loading the devices may take a minute, if storage does.
    Case(S.DEVICE, F.DESTINATION_QEMU_HANGS): BOTH,
    # `cont` was not sent yet when QEMU was found to be gone: so it never ran.
    Case(D.COMMITTED, F.DESTINATION_QEMU_KILLED): _one(Owner.SOURCE),
    Case(D.COMMITTED, F.DESTINATION_QEMU_HANGS): _one(Owner.SOURCE),
    Case(D.RUNNING, F.DESTINATION_QEMU_KILLED): _one(Owner.ENDED),
    # What cannot be recorded is not acted on; but that it runs is a fact.
    Case(D.COMMITTED, F.JOURNAL_FULL): _one(Owner.SOURCE),
}


def is_committed(case: Case, role: str) -> bool:
    """Whether a cancel comes too late on that side, in the phase of this case."""
    if role == "source":
        return case.phase in COMMITTED or case.phase is S.COMMIT
    return case.phase in COMMITTED


QUICK: Final = frozenset(
    {
        # Each fault once, and each phase.
        Case(S.LOOK, F.SOURCE_WORKER_KILLED),
        Case(S.ARM, F.SOURCE_WORKER_KILLED),
        Case(S.COLD, F.SOURCE_QEMU_KILLED),
        Case(S.COLD, F.NETWORK_SLOW),
        Case(S.RESIDENT, F.DESTINATION_QEMU_KILLED),
        Case(S.ROUNDS, F.NETWORK_CUT),
        Case(S.ROUNDS, F.SECOND_MIGRATION),
        Case(S.SWITCHOVER, F.SOURCE_WORKER_KILLED),
        Case(S.SWITCHOVER, F.SOURCE_QEMU_HANGS),
        Case(S.DEVICE, F.SOURCE_QEMU_KILLED),
        Case(S.DEVICE, F.CANCELLED_AT_SOURCE),
        Case(D.READY, F.DESTINATION_WORKER_KILLED),
        Case(D.RECEIVING, F.DESTINATION_DAEMON_KILLED),
        Case(D.DEVICE, F.DESTINATION_WORKER_KILLED),
        Case(D.LOADED, F.CANCELLED_AT_DESTINATION),
        Case(D.LOADED, F.DESTINATION_WORKER_HANGS),
        # The commit, by everything that is noticed at once.
        *(
            Case(phase, fault)
            for phase in (S.COMMIT, D.COMMITTED)
            for fault in (
                *(F.SOURCE_WORKER_KILLED, F.DESTINATION_WORKER_KILLED),
                *(F.SOURCE_DAEMON_KILLED, F.DESTINATION_DAEMON_KILLED),
                *(F.SOURCE_QEMU_KILLED, F.DESTINATION_QEMU_KILLED),
                *(F.CANCELLED_AT_SOURCE, F.JOURNAL_FULL),
            )
        ),
        Case(S.COMMIT, F.DESTINATION_QEMU_HANGS),
        Case(D.COMMITTED, F.SOURCE_WORKER_HANGS),
        Case(D.COMMITTED, F.NETWORK_HALF_OPEN),
        Case(D.RUNNING, F.DESTINATION_WORKER_KILLED),
        Case(D.RUNNING, F.SOURCE_WORKER_KILLED),
        # Memory and disks.
        Case(S.LOOK, F.SOURCE_DISK_FULL),
        Case(D.READY, F.DESTINATION_DISK_FULL),
        Case(S.COLD, F.SWAP_FULL),
        Case(S.LOOK, F.SWAP_UNREADABLE),
        Case(S.COLD, F.DESTINATION_OUT_OF_MEMORY),
    }
)
"""The cut for every day."""
