"""Keeping the cold pass out of the neighbours' way, while it runs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import trio

from pageferry.kernel import block_reads, pressure
from pageferry.migration.progress import Progress
from pageferry.migration.sending import RamSender
from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.parameters import MigrationParameters
from pageferry.policy.pacing import (
    Cycle,
    HostReading,
    allowed_bytes_per_s,
    before_the_migration,
    next_pace,
    wants_pause,
)

WORK_S = 0.4
"""Between two pauses: with those, a fifth of the time is given for knowing what harm we do, and
only where there is somebody to be harmed."""

PAUSE_S = 0.1
"""Long enough for some tens of reads of one that waits for each of them."""

SETTLE_S = 0.25
"""How long at most what is paged in already may take to be sent and paged out before a pause."""

SETTLE_STEP_S = 0.005


class SwapPacer:
    """Sets the sender's swap bandwidth by what others suffer, and by the operator's limit."""

    def __init__(
        self,
        pid: int,
        sender: RamSender,
        progress: Progress,
        parameters: MigrationParameters,
        calm: HostReading,
    ) -> None:
        """*calm* is `host_reading` of *pid* from before the migration began."""
        self._guest_file = _guest_pressure_file(pid)
        self._sender = sender
        self._progress = progress
        self._parameters = parameters
        self._pace = before_the_migration(calm, host_reading(self._guest_file))
        self._apply()

    def tune(self, parameters: MigrationParameters) -> None:
        """Go on with other parameters, at once."""
        self._parameters = parameters
        self._apply()

    async def run(self) -> None:
        """Work, pause where there are others, and set the pace, until cancelled."""
        while True:
            before = self._reading()
            await trio.sleep(WORK_S)
            work = (before, self._reading())
            pause = None
            if self._parameters.swap_pacing and wants_pause(self._pace, *work):
                pause = await self._pause()
            self._pace = next_pace(self._pace, Cycle(work, pause))
            self._apply()

    async def _pause(self) -> tuple[HostReading, HostReading] | None:
        """What the host does while we do nothing. None when our own work did not end in time."""
        with self._sender.no_page_ins():
            with trio.move_on_after(SETTLE_S) as settling:
                while self._sender.pages_in:  # noqa: ASYNC110 - threads count it
                    await trio.sleep(SETTLE_STEP_S)
            if settling.cancelled_caught:
                return None
            before = self._reading()
            await trio.sleep(PAUSE_S)
            return before, self._reading()

    def _apply(self) -> None:
        rate = allowed_bytes_per_s(
            self._pace,
            self._parameters.max_swap_bandwidth,
            paced=self._parameters.swap_pacing,
        )
        self._sender.swap_bandwidth.set_rate(rate)
        self._progress.swap_bandwidth = rate

    def _reading(self) -> HostReading:
        paged_in_bytes = self._progress.paged_in_pages * PAGE_BYTES
        return replace(host_reading(self._guest_file), paged_in_bytes=paged_in_bytes)


def calm_reading(pid: int) -> HostReading:
    """What the host of QEMU *pid* has done so far, before any page is paged in for it."""
    return host_reading(_guest_pressure_file(pid))


def host_reading(guest_file: Path | None) -> HostReading:
    """What the host has done so far; *guest_file* is the guest's own pressure file."""
    return HostReading(
        time_ns=time.monotonic_ns(),
        read_bytes=block_reads.host_bytes(),
        own_read_bytes=block_reads.own_bytes(),
        memory_us=pressure.host_some_us("memory"),
        guest_us=pressure.some_us(guest_file) if guest_file else None,
        paged_in_bytes=0,
    )


def _guest_pressure_file(pid: int) -> Path | None:
    try:
        return pressure.memory_pressure_file(pid)
    except OSError:
        # QEMU has just ended: whoever needs it will say so.
        return None
