"""pageferry's own migration of a freestanding guest, measured in the same way as QEMU's.

Two real daemons, a real `pageferry migrate` between them: what an operator runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from pageferry.testing.lab.daemons import (
    ONE_HOST,
    LabDaemon,
    MigrateResult,
    Network,
    run_daemon_pair,
)
from pageferry.testing.lab.guests import FreestandingGuest, GuestPlan
from pageferry.testing.lab.measuring import Measurement, Outcome, measure
from pageferry.testing.lab.settled import settled_pair

GUEST_NAME = "guest"
"""What both daemons call the guest."""


@contextlib.contextmanager
def daemons_for(
    guest: FreestandingGuest,
    defaults: Mapping[str, object] | None = None,
    network: Network = ONE_HOST,
) -> Iterator[tuple[LabDaemon, LabDaemon]]:
    """The daemons of the source and of the destination, which know both QEMUs as GUEST_NAME."""
    destination = guest.destination
    if destination is None:
        raise ValueError("start the destination first")
    with run_daemon_pair(
        guest.folder,
        {GUEST_NAME: guest.source.qmp_path},
        {GUEST_NAME: destination.qmp_path},
        defaults=defaults,
        network=network,
    ) as daemons:
        yield daemons


def outcome_of(result: MigrateResult) -> Outcome:
    """What ``pageferry migrate --json`` said at its end."""
    info = result.final_info
    ram = info.get("ram") or {}
    completed = result.status == 0 and info.get("status") == "completed"
    return Outcome(
        completed=completed,
        error="" if completed else result.reason,
        total_ms=info.get("total-time"),
        downtime_ms=info.get("downtime"),
        rounds=ram.get("dirty-sync-count"),
    )


def pageferry_carry(
    source: LabDaemon, destination: LabDaemon, *options: str
) -> Callable[[], Outcome]:
    """A carrier as :func:`measure` wants it: ``pageferry migrate`` with *options*."""
    return lambda: outcome_of(source.migrate(GUEST_NAME, destination, *options))


def measure_pageferry(plan: GuestPlan, *options: str) -> Measurement:
    """Start a guest, let pageferry carry it, and measure. Swap must be on."""
    with settled_pair(plan) as guest, daemons_for(guest) as (source, destination):
        return measure(guest, pageferry_carry(source, destination, *options))
