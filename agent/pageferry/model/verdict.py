"""What the doctor says of one thing that a migration needs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
        return told
