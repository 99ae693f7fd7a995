"""Watching the guest during a migration: that QEMU lives, and that its RAM stays as it was."""

from __future__ import annotations

from pageferry.model.errors import MigrationFailedError, QemuError
from pageferry.qemu.look import GuestView, look_blocks
from pageferry.qemu.monitor import Monitor

ENDING_EVENTS = {
    "SHUTDOWN": "the guest shut down during the migration",
    "GUEST_PANICKED": "the guest panicked during the migration",
}


async def watch_guest(monitor: Monitor) -> None:
    """Raise QemuError when QEMU is gone, MigrationFailedError when the guest ends; else never
    end."""
    with monitor.events() as events:
        async for name, _data, _timestamp_us in events:
            if name in ENDING_EVENTS:
                raise MigrationFailedError(ENDING_EVENTS[name], advice="nothing is left to migrate")
    raise QemuError(
        "QEMU closed its monitor: it ended during the migration",
        advice=f"look at the log of the QEMU that listens on {monitor.path}",
    )


async def watch_waiting_qemu(monitor: Monitor) -> None:
    """Raise QemuError when the QEMU that waits for its guest is gone; else never end.

    Nothing else would notice before the switchover: its RAM file takes pages without it.
    """
    with monitor.events() as events:
        async for _event in events:
            continue
    raise QemuError(
        "the destination's QEMU closed its monitor: it ended while its guest was on the way",
        advice=f"look at the log of the QEMU that listens on {monitor.path}, and start it anew",
    )


async def check_blocks(monitor: Monitor, before: GuestView) -> None:
    """Raise MigrationFailedError when a RAM block appeared, went or changed its size."""
    blocks = await look_blocks(monitor)
    was = {block.name: block.length_bytes for block in before.blocks}
    now = {block.name: block.length_bytes for block in blocks}
    if now != was:
        changed = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
        raise MigrationFailedError(
            f"RAM block {', '.join(changed)} appeared, went or changed its size",
            advice="do not plug or resize memory during a migration; migrate again",
        )
