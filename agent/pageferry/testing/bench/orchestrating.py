"""pageferry driven as an orchestrator drives it: over the control socket, like QEMU over QMP.

Both are told to migrate by a command on an open connection and asked in the same way whether they
are done, so that neither pays for the start of a command line tool.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pageferry.control.info import MigrationInfo
from pageferry.testing.lab.baseline import POLL_S
from pageferry.testing.lab.carrying import GUEST_NAME
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.daemons import LabDaemon
from pageferry.testing.lab.measuring import Outcome
from pageferry.testing.lab.monitor import LabMonitor

GRACE_S = 30.0
"""How long after its own timeout a migration may take to give up."""


def orchestrated_carry(
    source: LabDaemon, destination: LabDaemon, parameters: Mapping[str, Any], timeout_s: float
) -> Callable[[], Outcome]:
    """A carrier as :func:`measure` wants it: ``migrate``, then ``query-migrate`` until it is over.

    After *timeout_s* pageferry gives up by itself, and the guest runs on where it was.
    """

    def carry() -> Outcome:
        control = LabMonitor(source.control_socket)
        try:
            started = control.execute(
                "migrate",
                guest=GUEST_NAME,
                uri=destination.address,
                parameters={**parameters, "timeout": timeout_s},
            )
            info = _until_over(control, started["migration-id"], timeout_s + GRACE_S)
        finally:
            control.close()
        completed = info.status == "completed"
        return Outcome(
            completed,
            error="" if completed else str(info.error.get("message", info.status)),
            total_ms=info.total_time_ms,
            downtime_ms=info.downtime_ms,
            rounds=info.rounds,
        )

    return carry


def _until_over(control: LabMonitor, migration_id: str, most_s: float) -> MigrationInfo:
    deadline = time.monotonic() + most_s
    while True:
        answer = control.execute("query-migrate", migration_id=migration_id)
        info = MigrationInfo.from_dict(answer)
        if info.is_final:
            return info
        if time.monotonic() > deadline:
            raise LabError(f"pageferry's migration is not over after {most_s:g} s: {answer}")
        time.sleep(POLL_S)
