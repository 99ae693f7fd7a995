"""Looking at a guest over QMP. Only queries: nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pageferry.model.errors import QemuError
from pageferry.qemu.monitor import Monitor
from pageferry.qemu.ramblocks import (
    RamBlockLine,
    guest_address_of,
    parse_gpa2hva,
    parse_ramblocks,
)


@dataclass(frozen=True, slots=True)
class GuestBlock:
    """A RAM block that a memory backend backs, as QEMU describes it."""

    name: str
    length_bytes: int
    page_bytes: int
    backend_id: str
    backend_type: str
    shared: bool
    mem_path: str | None
    host_address: int | None


@dataclass(frozen=True, slots=True)
class GuestView:
    """What QEMU tells about a guest. Names are QEMU's own."""

    version: tuple[int, int, int]
    name: str
    status: str
    machine_type: str
    blocks: tuple[GuestBlock, ...]
    migration_status: str
    blocked_reasons: tuple[str, ...]
    capabilities: frozenset[str]
    device_types: frozenset[str]
    block_drivers: frozenset[str]
    jobs: tuple[str, ...]
    vcpu_threads: tuple[int, ...]


async def look(monitor: Monitor) -> GuestView:
    """Ask QEMU all that matters for carrying its guest. Raises QemuError.

    Takes some ten milliseconds, more with many devices; QEMU's main loop answers, no vCPU waits.
    """
    version = (await monitor.execute("query-version"))["qemu"]
    migration = await monitor.execute("query-migrate")
    capabilities = await monitor.execute("query-migrate-capabilities")
    machine_type = await _qom_get(monitor, "/machine", "type")
    return GuestView(
        version=(version["major"], version["minor"], version["micro"]),
        name=str((await monitor.execute("query-name")).get("name", "")),
        status=(await monitor.execute("query-status"))["status"],
        machine_type=str(machine_type).removesuffix("-machine"),
        blocks=await look_blocks(monitor),
        migration_status=str(migration.get("status", "none")),
        blocked_reasons=tuple(migration.get("blocked-reasons", ())),
        capabilities=frozenset(each["capability"] for each in capabilities),
        device_types=await _device_types(monitor),
        block_drivers=await _block_drivers(monitor),
        jobs=await _jobs(monitor),
        vcpu_threads=await _vcpu_threads(monitor),
    )


async def look_blocks(monitor: Monitor) -> tuple[GuestBlock, ...]:
    """The RAM blocks that memory backends back, in QEMU's order. Raises QemuError."""
    lines = {line.name: line for line in parse_ramblocks(await monitor.human("info ramblock"))}
    backends = await monitor.execute("query-memdev")
    paths = {f"/objects/{each['id']}": each for each in backends if each.get("id")}
    machine_backend = str(await _qom_get(monitor, "/machine", "memory-backend") or "")
    if machine_backend and machine_backend not in paths:
        # Plain `-m SIZE`: QEMU made a backend of its own, outside /objects.
        paths[machine_backend] = {}
    addresses = _Addresses(monitor)
    blocks = []
    for path, backend in paths.items():
        backend_id = path.rpartition("/")[2]
        # The block is named by the id, or by the path where x-use-canonical-path-for-ramblock-id
        # is.
        line = lines.get(backend_id) or lines.get(path)
        if line is not None:
            blocks.append(await _block(monitor, path, backend, line, addresses))
    order = list(lines)
    return tuple(sorted(blocks, key=lambda block: order.index(block.name)))


class _Addresses:
    """Where blocks lie in QEMU, for versions whose `info ramblock` does not say."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._mtree: str | None = None

    async def of(self, block: str) -> int | None:
        if self._mtree is None:
            self._mtree = await self._monitor.human("info mtree -f")
        found = guest_address_of(self._mtree, block)
        if found is None:
            return None
        guest_address, offset = found
        text = await self._monitor.human(f"gpa2hva {guest_address:#x}")
        return parse_gpa2hva(text, block) - offset


async def _block(
    monitor: Monitor,
    path: str,
    backend: Mapping[str, Any],
    line: RamBlockLine,
    addresses: _Addresses,
) -> GuestBlock:
    backend_type = str(await _qom_get(monitor, path, "type"))
    mem_path = None
    if backend_type == "memory-backend-file":
        mem_path = str(await _qom_get(monitor, path, "mem-path"))
    shared = backend.get("share")
    if shared is None:
        shared = await _qom_get(monitor, path, "share")
    host_address = line.host_address
    if host_address is None:
        host_address = await addresses.of(line.name)
    return GuestBlock(
        name=line.name,
        length_bytes=line.used_bytes,
        page_bytes=line.page_bytes,
        backend_id=path.rpartition("/")[2],
        backend_type=backend_type,
        shared=bool(shared),
        mem_path=mem_path,
        host_address=host_address,
    )


async def _qom_get(monitor: Monitor, path: str, name: str) -> Any:
    try:
        return await monitor.execute("qom-get", {"path": path, "property": name})
    except QemuError as error:
        if error.error_class:
            return None
        raise


async def _device_types(monitor: Monitor) -> frozenset[str]:
    """The types of all devices, plugged at start (anonymous or named) or built in."""
    types: set[str] = set()
    for path in ("/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached"):
        for child in await _children(monitor, path):
            types.add(child["type"].removeprefix("child<").removesuffix(">"))
    return frozenset(types)


async def _children(monitor: Monitor, path: str) -> Sequence[Mapping[str, str]]:
    try:
        found = await monitor.execute("qom-list", {"path": path})
    except QemuError as error:
        if error.error_class:
            return ()
        raise
    return [each for each in found if each["type"].startswith("child<")]


async def _block_drivers(monitor: Monitor) -> frozenset[str]:
    nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
    return frozenset(str(node.get("drv", "")) for node in nodes)


async def _jobs(monitor: Monitor) -> tuple[str, ...]:
    """Jobs that have not ended, as "type id"."""
    ended = ("concluded", "null", "undefined")
    jobs = await monitor.execute("query-jobs")
    return tuple(f"{job['type']} {job['id']}" for job in jobs if job["status"] not in ended)


async def _vcpu_threads(monitor: Monitor) -> tuple[int, ...]:
    return tuple(int(cpu["thread-id"]) for cpu in await monitor.execute("query-cpus-fast"))
