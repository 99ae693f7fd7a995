"""A guest, the QEMU that waits for it, and the daemon on either side."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pageferry.control.info import FINAL_STATUSES
from pageferry.migration.journal import read_journal
from pageferry.testing.lab.carrying import GUEST_NAME, daemons_for
from pageferry.testing.lab.daemons import LabDaemon, MigrateResult
from pageferry.testing.lab.guests import FreestandingGuest, GuestPlan
from pageferry.testing.lab.hosts import tracked_ranges_in, userfaultfds_in
from pageferry.testing.lab.monitor import LabMonitor
from pageferry.testing.lab.qemus import LabQemu, Machine
from pageferry.testing.lab.settled import settled_pair

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Traces:
    """What a tracker or a switchover could leave behind in a QEMU."""

    userfaultfds: int
    protected_ranges: int
    capabilities: frozenset[str]
    run_state: str


@dataclass(slots=True)
class Pair:
    """All that one migration needs."""

    guest: FreestandingGuest
    here: LabDaemon
    there: LabDaemon
    _control: LabMonitor | None = field(default=None, init=False)

    @property
    def source(self) -> LabQemu:
        """The QEMU in which the guest began."""
        return self.guest.source

    @property
    def destination(self) -> LabQemu:
        """The QEMU that waits for it."""
        assert self.guest.destination is not None
        return self.guest.destination

    def migrate(self, *options: str) -> MigrateResult:
        """Migrate to the end."""
        return self.here.migrate(GUEST_NAME, self.there, *options)

    def start(self, **parameters: object) -> str:
        """Begin a migration over the control socket. Returns its ID."""
        started = self.control.execute(
            "migrate", guest=GUEST_NAME, uri=self.there.address, parameters=parameters
        )
        return str(started["migration-id"])

    @property
    def control(self) -> LabMonitor:
        """The source's control socket, which speaks QMP."""
        if self._control is None:
            self._control = LabMonitor(self.here.control_socket)
        return self._control

    def info(self) -> dict[str, Any]:
        """What query-migrate says of the source's last migration."""
        found: dict[str, Any] = self.control.execute("query-migrate")
        return found

    def wait_info(
        self, reached: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0
    ) -> dict[str, Any]:
        """Wait until *reached* is true of the migration, and return what it says then."""
        deadline = time.monotonic() + timeout_s
        while not reached(info := self.info()):
            assert time.monotonic() < deadline, info
            time.sleep(POLL_S)
        return info

    def wait_end(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait for the end of the migration."""
        return self.wait_info(lambda info: info["status"] in FINAL_STATUSES, timeout_s)

    def close(self) -> None:
        """Close the control connection."""
        if self._control is not None:
            self._control.close()
            self._control = None

    def journal_phases(self) -> dict[str, str | None]:
        """The last phase in each journal of either daemon, by role."""
        phases: dict[str, str | None] = {}
        for daemon in (self.here, self.there):
            for path in sorted(daemon.state_directory.glob("*.journal")):
                state = read_journal(path)
                if state is not None:
                    phases[state.role] = state.phase
        return phases


@contextlib.contextmanager
def pair_of(
    plan: GuestPlan,
    *,
    defaults: Mapping[str, object] | None = None,
    change: Callable[[Machine], Machine] | None = None,
) -> Iterator[Pair]:
    """A started guest (settled when its plan has a limit), a destination, and both daemons.

    *change* makes the destination's machine differ from the source's.
    """
    with settled_pair(plan, change=change) as guest, daemons_for(guest, defaults) as (here, there):
        pair = Pair(guest, here, there)
        try:
            yield pair
        finally:
            pair.close()


def traces_in(qemu: LabQemu) -> Traces:
    """What is in a QEMU now that a migration might have put there."""
    capabilities = qemu.monitor.execute("query-migrate-capabilities")
    return Traces(
        userfaultfds=userfaultfds_in(qemu.pid),
        protected_ranges=tracked_ranges_in(qemu.pid),
        capabilities=frozenset(each["capability"] for each in capabilities if each["state"]),
        run_state=qemu.status(),
    )
