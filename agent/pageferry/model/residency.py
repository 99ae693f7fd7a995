"""How much of a guest's RAM is resident, swapped, or was never allocated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResidencyBytes:
    """Totals over one or more RAM blocks. The three add up to the RAM's length."""

    resident_bytes: int = 0
    swapped_bytes: int = 0
    hole_bytes: int = 0

    def __add__(self, other: ResidencyBytes) -> ResidencyBytes:
        return ResidencyBytes(
            self.resident_bytes + other.resident_bytes,
            self.swapped_bytes + other.swapped_bytes,
            self.hole_bytes + other.hole_bytes,
        )

    def as_dict(self) -> dict[str, int]:
        """As a map with the keys ``resident_bytes``, ``swapped_bytes``, ``hole_bytes``."""
        return {
            "resident_bytes": self.resident_bytes,
            "swapped_bytes": self.swapped_bytes,
            "hole_bytes": self.hole_bytes,
        }
