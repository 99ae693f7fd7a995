"""What a probe of the kernel found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Degree(StrEnum):
    """How far a kernel feature can be used."""

    SUPPORTED = "supported"
    ABSENT = "absent"
    """The kernel or this host does not have it."""
    DENIED = "denied"
    """The kernel has it, but not for this process."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One feature. ``reason`` says why it is absent or denied and what would change that."""

    name: str
    degree: Degree
    reason: str

    @property
    def supported(self) -> bool:
        """Whether the feature can be used."""
        return self.degree is Degree.SUPPORTED
