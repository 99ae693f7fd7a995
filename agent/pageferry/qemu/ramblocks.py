"""Parsers of what QEMU's human monitor tells about RAM. Pure; recorded samples are in the tests.

QMP has no answer to where a RAM block lies in QEMU's address space, hence the human monitor. A line
that is not understood is an error that quotes it: guessing here would copy the wrong memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pageferry.model.errors import QemuError

_BLOCK = re.compile(
    r"^\s*(?P<name>\S.*?)?\s+(?P<page>\d+) (?P<unit>[KMG])iB\s+0x(?P<offset>[0-9a-f]+)\s+"
    r"0x(?P<used>[0-9a-f]+)\s+0x(?P<total>[0-9a-f]+)(?:\s+0x(?P<hva>[0-9a-f]+))?(?:\s+(?:ro|rw))?$"
)
_REGION = re.compile(
    r"^\s+(?P<start>[0-9a-f]{16})-[0-9a-f]{16} \(prio -?\d+, (?P<kind>[^)]+)\): (?P<name>.*?)"
    r"(?: @(?P<offset>[0-9a-f]{16}))?(?: KVM)?$"
)
_HVA = re.compile(
    r"^Host virtual address for 0x[0-9a-f]+ \((?P<name>.*)\) is 0x(?P<hva>[0-9a-f]+)$"
)
_UNIT_BYTES = {"K": 1024, "M": 1024**2, "G": 1024**3}


@dataclass(frozen=True, slots=True)
class RamBlockLine:
    """A row of ``info ramblock``. ``name`` is empty for memory that no guest uses.

    ``host_address`` is None before QEMU 8.2, which has no such column.
    """

    name: str
    page_bytes: int
    used_bytes: int
    host_address: int | None


def parse_ramblocks(text: str) -> list[RamBlockLine]:
    """The rows of ``info ramblock``. Raises QemuError on a line that is none."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or "Block Name" not in lines[0]:
        raise _not_understood("info ramblock", lines[0] if lines else "")
    return [_ramblock(line) for line in lines[1:]]


def _ramblock(line: str) -> RamBlockLine:
    match = _BLOCK.match(line)
    if match is None:
        raise _not_understood("info ramblock", line)
    hva = match["hva"]
    return RamBlockLine(
        name=match["name"] or "",
        page_bytes=int(match["page"]) * _UNIT_BYTES[match["unit"]],
        used_bytes=int(match["used"], 16),
        host_address=int(hva, 16) if hva else None,
    )


def guest_address_of(mtree: str, block: str) -> tuple[int, int] | None:
    """A guest address that *block* backs and its offset in the block, by ``info mtree -f``.

    None when no address space shows it. Lines about other things are many and are passed over.
    """
    for line in mtree.splitlines():
        match = _REGION.match(line)
        if match and match["name"] == block and match["kind"] in ("ram", "rom", "romd", "nv-ram"):
            return int(match["start"], 16), int(match["offset"] or "0", 16)
    return None


def parse_gpa2hva(text: str, block: str) -> int:
    """The host address that ``gpa2hva`` tells. Raises QemuError when it is not of *block*."""
    match = _HVA.match(text.strip())
    if match is None or match["name"] != block:
        raise _not_understood("gpa2hva", text.strip())
    return int(match["hva"], 16)


def _not_understood(command: str, line: str) -> QemuError:
    return QemuError(
        f"QEMU's answer to `{command}` is not understood: {line!r}",
        advice="this QEMU version is not supported yet; please report the line",
    )
