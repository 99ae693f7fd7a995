"""What the doctor says of one thing that a migration needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pageferry.model.residency import ResidencyBytes


class Verdict(StrEnum):
    """How good it is."""

    OK = "ok"
    DEGRADED = "degraded"
    """Migrations work, but not as well as they could."""
    BLOCKED = "blocked"
    """Migrations cannot work."""
    UNKNOWN = "unknown"
    """It cannot be told from here."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing. ``fix`` says what would make it better; empty where nothing is to be done."""

    section: str
    name: str
    verdict: Verdict
    found: str
    fix: str = ""
    guest: str = ""
    free_bytes: int | None = None
    """What is free of what it is about: memory, swap, room on a tmpfs."""
    ram: ResidencyBytes | None = None
    """Where the guest's RAM is."""

    def as_dict(self) -> dict[str, str | int]:
        """For the control socket."""
        told: dict[str, str | int] = {
            "section": self.section,
            "name": self.name,
            "verdict": self.verdict.value,
            "found": self.found,
            "fix": self.fix,
        }
        if self.guest:
            told["guest"] = self.guest
        if self.free_bytes is not None:
            told["free-bytes"] = self.free_bytes
        if self.ram is not None:
            told["resident-bytes"] = self.ram.resident_bytes
            told["swapped-bytes"] = self.ram.swapped_bytes
        return told


@dataclass(frozen=True, slots=True)
class Room:
    """What a host has free for guests that come."""

    memory_bytes: int
    swap_bytes: int
    tmpfs_bytes: int


def worst_of(checks: Sequence[Check]) -> Check:
    """The first of those with the gravest verdict."""
    order = (Verdict.BLOCKED, Verdict.DEGRADED, Verdict.UNKNOWN, Verdict.OK)
    return min(checks, key=lambda check: order.index(check.verdict))
