"""The connection to QEMU while a migration is being cancelled: real QEMUs."""

from __future__ import annotations

import shutil
from pathlib import Path

import trio

from pageferry.qemu.monitor import open_monitor
from pageferry.qemu.switchover import DestinationHandover
from tests.recovery.bench import qemu
from tests.support import need

PROMPT_S = 15.0
"""Half of what ending a QEMU may take before it is given up."""


async def test_the_end_of_qemu_is_noticed_while_cancelled(tmp_path: Path) -> None:
    """Or a cancel at the destination would wait in vain, the guest paused on the source."""
    need(shutil.which("qemu-system-x86_64") is not None, "needs qemu-system-x86_64")
    with qemu(tmp_path / "qmp") as its_qemu:
        noticed = False
        with trio.CancelScope() as migration:
            async with open_monitor(str(its_qemu.qmp)) as monitor:
                try:
                    migration.cancel()
                    await trio.sleep(60)
                finally:
                    with trio.CancelScope(shield=True), trio.fail_after(PROMPT_S):
                        await DestinationHandover(monitor).discard()
                        noticed = True
        assert noticed
        assert its_qemu.process.wait(20) == 0
