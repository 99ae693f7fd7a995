"""Keeping the cold pass out of the neighbours' way, while it runs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import trio

from pageferry.kernel import pressure
from pageferry.migration.progress import Progress
from pageferry.migration.sending import RamSender
from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.parameters import MigrationParameters
from pageferry.policy.pacing import (
    PressureReading,
    allowed_bytes_per_s,
    before_the_migration,
    next_pace,
)

READING_S = 0.1
"""PSI itself is brought up to date when it is read; less than this and a single wait of a
neighbour's swings the share."""


class SwapPacer:
    """Sets the sender's swap bandwidth by the host's pressure and the operator's limit."""

    def __init__(
        self,
        pid: int,
        sender: RamSender,
        progress: Progress,
        parameters: MigrationParameters,
        calm: PressureReading,
    ) -> None:
        """*calm* is `host_pressure` from before the migration began."""
        self._guest_file = _guest_pressure_file(pid)
        self._sender = sender
        self._progress = progress
        self._parameters = parameters
        self._pace = before_the_migration(calm, host_pressure())
        self._apply()

    def tune(self, parameters: MigrationParameters) -> None:
        """Go on with other parameters, at once."""
        self._parameters = parameters
        self._apply()

    async def run(self) -> None:
        """Read the pressure and set the pace, until cancelled."""
        before = self._reading()
        while True:
            await trio.sleep(READING_S)
            after = self._reading()
            self._pace = next_pace(self._pace, before, after)
            self._apply()
            before = after

    def _apply(self) -> None:
        rate = allowed_bytes_per_s(
            self._pace,
            self._parameters.max_swap_bandwidth,
            paced=self._parameters.swap_pacing,
        )
        self._sender.swap_bandwidth.set_rate(rate)
        self._progress.swap_bandwidth = rate

    def _reading(self) -> PressureReading:
        return replace(
            host_pressure(),
            guest_us=pressure.some_us(self._guest_file) if self._guest_file else None,
            own_ns=self._sender.paging_clock.total_ns(),
            paged_in_bytes=self._progress.paged_in_pages * PAGE_BYTES,
        )


def host_pressure() -> PressureReading:
    """What the host's tasks have waited so far, without what is ours or the guest's in it."""
    return PressureReading(
        time_ns=time.monotonic_ns(),
        memory_us=pressure.host_some_us("memory"),
        io_us=pressure.host_some_us("io"),
        guest_us=None,
        own_ns=0,
        paged_in_bytes=0,
    )


def _guest_pressure_file(pid: int) -> Path | None:
    try:
        return pressure.memory_pressure_file(pid)
    except OSError:
        # QEMU has just ended: whoever needs it will say so.
        return None
