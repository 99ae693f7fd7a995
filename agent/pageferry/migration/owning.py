"""Carrying out `policy.ownership`: the tables decide, this only does and reports.

`SourceOwnership` and `DestinationOwnership` hold the step that a process is at. `follow` does the
deed that belongs to the step, and goes on with what comes of it, until it comes to a step for which
it was given no deed: an end, mostly.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from pageferry.kernel.identity import ProcessIdentity, process_identity
from pageferry.migration.journal import Journal, JournalError
from pageferry.model.errors import PageferryError, QemuError
from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.policy.ownership import (
    DestinationEvent,
    DestinationStep,
    SourceEvent,
    SourceStep,
    destination_after,
    may_give_up,
    source_after,
)
from pageferry.qemu.monitor import Monitor

log = logging.getLogger(__name__)

EXIT_INTERVAL_S = 0.02

SourceDeeds = Mapping[SourceStep, Callable[[], Awaitable[SourceEvent]]]
DestinationDeeds = Mapping[DestinationStep, Callable[[], Awaitable[DestinationEvent]]]


def qemu_identity(monitor: Monitor) -> ProcessIdentity:
    """Which QEMU this is, for the journal. Raises QemuError when it has just ended."""
    identity = process_identity(monitor.peer_pid)
    if identity is None:
        raise QemuError(
            f"the QEMU at {monitor.path} (process {monitor.peer_pid}) is gone",
            advice="look at its log",
        )
    return identity


async def ended(identity: ProcessIdentity, patience_s: float) -> bool:
    """Whether that process is gone, at the latest after *patience_s*.

    QEMU closes its sockets before it gives its memory back, which takes a while.
    """
    with trio.move_on_after(patience_s):
        while identity.is_alive:  # noqa: ASYNC110 - it need not be our child
            await trio.sleep(EXIT_INTERVAL_S)
    return not identity.is_alive


class SourceOwnership:
    """Where the source's process is."""

    def __init__(self, step: SourceStep = SourceStep.CARRY) -> None:
        self.step = step

    @property
    def may_give_up(self) -> bool:
        """Whether a failure or a cancel still ends the migration."""
        return may_give_up(self.step)

    def on(self, event: SourceEvent) -> SourceStep:
        """Go on: *event* came of the step. Raises LocalProtocolError when it cannot."""
        before, self.step = self.step, source_after(self.step, event)
        log.debug("ownership: %s: %s, next is %s", before.value, event.value, self.step.value)
        return self.step

    async def follow(self, deeds: SourceDeeds) -> SourceStep:
        """Do what the steps say for as long as there is a deed for them."""
        while self.step in deeds:
            self.on(await deeds[self.step]())
        return self.step


class DestinationOwnership:
    """Where the destination's process is."""

    def __init__(self, step: DestinationStep = DestinationStep.RECEIVE) -> None:
        self.step = step

    @property
    def may_give_up(self) -> bool:
        """Whether a failure or a cancel still ends the migration."""
        return may_give_up(self.step)

    def on(self, event: DestinationEvent) -> DestinationStep:
        """Go on: *event* came of the step. Raises LocalProtocolError when it cannot."""
        before, self.step = self.step, destination_after(self.step, event)
        log.debug("ownership: %s: %s, next is %s", before.value, event.value, self.step.value)
        return self.step

    async def follow(self, deeds: DestinationDeeds) -> DestinationStep:
        """Do what the steps say for as long as there is a deed for them."""
        while self.step in deeds:
            self.on(await deeds[self.step]())
        return self.step


def told_notes(error: PageferryError) -> dict[str, str]:
    """The last record's notes on what the operator is told: a daemon that did not see the end tells
    it from the journal."""
    return {"reason": error.message, "guest-state": error.guest_state, "advice": error.advice}


class Recorder:
    """Writes the records of the steps, and keeps what went wrong with the last one."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.error: JournalError | None = None

    async def record(self, phase: SourcePhase | DestinationPhase, **notes: Any) -> bool:
        """Whether *phase* is on disk now. False leaves the reason in `error`."""
        try:
            await self.journal.record(phase, **notes)
        except JournalError as error:
            log.error("%s", error)
            self.error = error
            return False
        self.error = None
        return True

    async def source(self, phase: SourcePhase, **notes: Any) -> SourceEvent:
        """`record` as the event that it is for the source."""
        done = await self.record(phase, **notes)
        return SourceEvent.RECORDED if done else SourceEvent.NOT_RECORDED

    async def destination(self, phase: DestinationPhase, **notes: Any) -> DestinationEvent:
        """`record` as the event that it is for the destination."""
        done = await self.record(phase, **notes)
        return DestinationEvent.RECORDED if done else DestinationEvent.NOT_RECORDED
