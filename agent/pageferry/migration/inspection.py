"""Looking at a guest without migrating it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from pageferry.kernel.pageset import PageSet
from pageferry.kernel.residency import choose_reader, residency, summary
from pageferry.migration.guest_ram import CarriedBlock, guest_ram
from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.residency import ResidencyBytes
from pageferry.qemu.look import look
from pageferry.qemu.monitor import open_monitor


async def guest_residency(qmp: Path, cells: int | None = None) -> dict[str, Any]:
    """How much of each RAM block of the guest at *qmp* is resident, swapped, or a hole.

    Keys: ``way``, ``total`` with ``resident-bytes``, ``swapped-bytes`` and ``hole-bytes``, and
    ``blocks``, a list with the same keys and ``name``. With *cells* each block also has
    ``cell-bytes``, ``resident-map`` and ``swapped-map``: how many pages of each of at most *cells*
    equal parts are resident and swapped. Nothing is read in. Raises PageferryError.
    """
    async with open_monitor(str(qmp)) as monitor:
        view = await look(monitor)
        async with guest_ram(monitor.peer_pid, view, writable=False) as blocks:
            return await trio.to_thread.run_sync(_residency_of, blocks, cells)


def _residency_of(blocks: Sequence[CarriedBlock], cells: int | None) -> dict[str, Any]:
    reader = choose_reader()
    total = ResidencyBytes()
    described = []
    for carried in blocks:
        data, swapped = residency(carried.mapping, reader)
        found = summary(data, swapped)
        entry: dict[str, Any] = {"name": carried.block.name, **_hyphenated(found)}
        if cells is not None:
            entry.update(_map_of(data, swapped, cells))
        described.append(entry)
        total += found
    return {"way": reader.name, "total": _hyphenated(total), "blocks": described}


def _map_of(data: PageSet, swapped: PageSet, cells: int) -> dict[str, Any]:
    """Counts by cell. One call into C a cell, whatever the number of pages."""
    cell_pages = max(1, -(-data.pages // cells))
    resident_map, swapped_map = [], []
    for first in range(0, data.pages, cell_pages):
        count = min(cell_pages, data.pages - first)
        swapped_pages = swapped.count_range(first, count)
        swapped_map.append(swapped_pages)
        resident_map.append(data.count_range(first, count) - swapped_pages)
    return {
        "cell-bytes": cell_pages * PAGE_BYTES,
        "resident-map": resident_map,
        "swapped-map": swapped_map,
    }


def _hyphenated(found: ResidencyBytes) -> dict[str, int]:
    return {key.replace("_", "-"): value for key, value in found.as_dict().items()}
