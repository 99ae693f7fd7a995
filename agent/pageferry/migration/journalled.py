"""What the notes of a journal name: its QEMU, and who may have received the guest."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, TypeVar

from pageferry.certificates.description import CertificateInfo
from pageferry.kernel.identity import ProcessIdentity
from pageferry.migration.journal import JournalError, JournalState
from pageferry.migration.launched import LaunchedQemu
from pageferry.migration.owning import ended
from pageferry.model.errors import QemuError, RefusedError
from pageferry.policy.peers import any_matches
from pageferry.qemu.monitor import Monitor, open_monitor
from pageferry.qemu.switchover import guest_status

EXIT_S: Final = 10.0
"""How long QEMU may take to end after it has closed its monitor: it gives back a guest's RAM."""

N = TypeVar("N", str, int, bool)


class UnfitNotesError(JournalError):
    """A journal's notes are not what a worker writes, so that nothing can be done by them."""


def note(state: JournalState, key: str, kind: type[N], default: N) -> N:
    """The note *key*, or *default* where there is none. Raises UnfitNotesError."""
    value = state.notes.get(key, default)
    if type(value) is not kind:
        raise UnfitNotesError(f"{state.path}: {key} is {str(value)[:40]!r}")
    return value


def launched_noted(state: JournalState) -> LaunchedQemu | None:
    """The QEMU that was started for this migration, where one was. Raises UnfitNotesError."""
    try:
        notes = state.notes.get("launched")
        return None if notes is None else LaunchedQemu.from_notes(notes)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise UnfitNotesError(f"{state.path}: its notes on QEMU's start make no sense") from error


def capabilities_noted(state: JournalState) -> dict[str, bool]:
    """QEMU's migration capabilities that the switchover changes, as they were. Raises
    UnfitNotesError."""
    noted = state.notes.get("capabilities", {})
    if not isinstance(noted, dict) or not all(type(each) is bool for each in noted.values()):
        raise UnfitNotesError(f"{state.path}: capabilities are {str(noted)[:40]!r}")
    return {str(name): value for name, value in noted.items()}


class JournalledQemu:
    """The QEMU that a journal is about, which need not be the one that answers at its socket.

    Raises UnfitNotesError when the journal does not say which that is.
    """

    def __init__(self, state: JournalState) -> None:
        self._path = note(state, "qmp", str, "")
        self._identity: ProcessIdentity | None = None
        try:
            if "qemu" in state.notes:
                self._identity = ProcessIdentity.from_dict(state.notes["qemu"])
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise UnfitNotesError(f"{state.path}: no QEMU is named by its notes") from error
        self.monitor: Monitor | None = None
        self.status = ""
        self.trouble = ""
        """Why it cannot be spoken to."""

    @property
    def pid(self) -> int | None:
        """Its process; None where the journal does not say."""
        return None if self._identity is None else self._identity.pid

    @property
    def is_gone(self) -> bool:
        """Whether it has ended for certain."""
        return self._identity is not None and not self._identity.is_alive

    async def has_ended(self) -> bool:
        """Whether it has ended, after some patience."""
        return self._identity is not None and await ended(self._identity, EXIT_S)

    async def look(self, stack: AsyncExitStack) -> str:
        """Connect to it for as long as *stack* lives. Returns in words what it does."""
        if self.is_gone:
            return "its QEMU has ended"
        try:
            monitor = await stack.enter_async_context(open_monitor(self._path))
            if self._identity is not None and monitor.peer_pid != self._identity.pid:
                self.trouble = (
                    f"at {self._path} answers process {monitor.peer_pid}, not the QEMU of this"
                    f" migration, process {self._identity.pid}, which still lives"
                )
                return self.trouble
            self.status = await guest_status(monitor)
        except QemuError as error:
            self.trouble = f"its QEMU lives, but cannot be spoken to: {error.message}"
            return self.trouble
        self.monitor = monitor
        return f"its QEMU says {self.status}"


@dataclass(frozen=True, slots=True)
class Receivers:
    """Whose word on a guest that was sent counts: patterns of certificate names; None: anybody's
    of the authority.
    """

    patterns: tuple[str, ...] | None = None

    def check(self, certificate: CertificateInfo) -> None:
        """Raise RefusedError when its holder may not have received the guest."""
        if self.patterns is None or any_matches(certificate.names, self.patterns):
            return
        raise RefusedError(
            f"certificate {certificate} may not receive this guest from this host, so that what its"
            " holder says of it does not count",
            advice="add the guest to may-receive of the certificate in [peers] on this host",
        )


def receivers_noted(state: JournalState) -> Receivers:
    """Those that the rules allowed when the migration began. Raises UnfitNotesError."""
    noted = state.notes.get("receivers")
    if noted is None:
        return Receivers()
    if not (isinstance(noted, list) and all(isinstance(each, str) for each in noted)):
        raise UnfitNotesError(f"{state.path}: receivers is {str(noted)[:40]!r}")
    return Receivers(tuple(noted))
