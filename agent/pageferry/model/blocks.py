"""RAM blocks: QEMU's unit of guest memory, as both sides agree on them."""

from __future__ import annotations

from dataclasses import dataclass

PAGE_BYTES = 4096
"""Granule of residency, tracking and transfer: the x86-64 base page."""


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One RAM block. ``name`` is QEMU's idstr; ``length_bytes`` is its used length."""

    name: str
    length_bytes: int

    @property
    def pages(self) -> int:
        """Length in base pages; QEMU aligns used lengths to the host's page."""
        return self.length_bytes // PAGE_BYTES
