"""Looking at a guest without migrating it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from pageferry.kernel.residency import choose_reader, data_pages, summary
from pageferry.migration.guest_ram import CarriedBlock, guest_ram
from pageferry.model.residency import ResidencyBytes
from pageferry.qemu.look import look
from pageferry.qemu.monitor import open_monitor


async def guest_residency(qmp: Path) -> dict[str, Any]:
    """How much of each RAM block of the guest at *qmp* is resident, swapped, or a hole.

    Keys: ``way``, ``total`` and ``blocks`` (by name), each with ``resident-bytes``,
    ``swapped-bytes`` and ``hole-bytes``. Raises PageferryError.
    """
    async with open_monitor(str(qmp)) as monitor:
        view = await look(monitor)
        async with guest_ram(monitor.peer_pid, view, writable=False) as blocks:
            return await trio.to_thread.run_sync(_residency_of, blocks)


def _residency_of(blocks: Sequence[CarriedBlock]) -> dict[str, Any]:
    reader = choose_reader()
    total = ResidencyBytes()
    by_name = {}
    for carried in blocks:
        data = data_pages(carried.mapping)
        found = summary(data, reader.swapped(carried.mapping, data))
        by_name[carried.block.name] = _hyphenated(found)
        total += found
    return {"way": reader.name, "total": _hyphenated(total), "blocks": by_name}


def _hyphenated(found: ResidencyBytes) -> dict[str, int]:
    return {key.replace("_", "-"): value for key, value in found.as_dict().items()}
