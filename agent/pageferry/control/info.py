"""What the daemon tells about migrations and guests, typed.

Keys that a newer daemon added are kept in ``raw`` and otherwise ignored; keys that an older one
does not send read as zero or None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

FINAL_STATUSES: Final = frozenset({"completed", "failed", "cancelled"})
"""Values of MigrationStatus after which nothing changes any more."""


def _map(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = values.get(key)
    return inner if isinstance(inner, Mapping) else {}


@dataclass(frozen=True, slots=True)
class MigrationInfo:
    """One migration, from an answer to query-migrate. Sizes in bytes, times in milliseconds."""

    raw: Mapping[str, Any]
    migration_id: str
    guest: str
    role: str
    status: str
    phase: str
    destination: str
    total_time_ms: int
    downtime_ms: float | None
    expected_downtime_ms: float | None
    transferred_bytes: int
    remaining_bytes: int
    total_bytes: int
    rounds: int
    mbps: float
    page_bytes: int
    pages_per_second: int
    dirty_pages_per_second: int
    cold_bytes: int
    paged_in_bytes: int
    paged_out_bytes: int
    phase_done_bytes: int
    phase_total_bytes: int
    verified: bool | None
    error: Mapping[str, Any]

    @property
    def is_final(self) -> bool:
        """Whether the migration is over, one way or the other."""
        return self.status in FINAL_STATUSES

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> MigrationInfo:
        """From the map that query-migrate answers with."""
        ram, residency, progress = _map(raw, "ram"), _map(raw, "residency"), _map(raw, "progress")
        error = dict(_map(raw, "error"))
        if not error and raw.get("error-desc"):
            error = {"kind": "failed", "message": raw["error-desc"]}
        return cls(
            raw=raw,
            migration_id=raw.get("migration-id", ""),
            guest=raw.get("guest", ""),
            role=raw.get("role", ""),
            status=raw.get("status", "none"),
            phase=raw.get("phase", ""),
            destination=raw.get("destination", ""),
            total_time_ms=raw.get("total-time", 0),
            downtime_ms=raw.get("downtime"),
            expected_downtime_ms=raw.get("expected-downtime"),
            transferred_bytes=ram.get("transferred", 0),
            remaining_bytes=ram.get("remaining", 0),
            total_bytes=ram.get("total", 0),
            rounds=ram.get("dirty-sync-count", 0),
            mbps=ram.get("mbps", 0.0),
            page_bytes=ram.get("page-size", 4096),
            pages_per_second=ram.get("pages-per-second", 0),
            dirty_pages_per_second=ram.get("dirty-pages-rate", 0),
            cold_bytes=residency.get("cold-bytes", 0),
            paged_in_bytes=residency.get("paged-in-bytes", 0),
            paged_out_bytes=residency.get("paged-out-bytes", 0),
            phase_done_bytes=progress.get("phase-done-bytes", 0),
            phase_total_bytes=progress.get("phase-total-bytes", 0),
            verified=raw.get("verified"),
            error=error,
        )


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """One guest that the daemon knows. ``status`` is that of its last migration, or "none"."""

    raw: Mapping[str, Any]
    name: str
    qmp: str
    present: bool
    migration_id: str | None
    status: str

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> GuestInfo:
        """From one element of the answer to query-guests."""
        return cls(
            raw=raw,
            name=raw.get("name", ""),
            qmp=raw.get("qmp", ""),
            present=raw.get("present", False),
            migration_id=raw.get("migration-id"),
            status=raw.get("status", "none"),
        )


@dataclass(frozen=True, slots=True)
class Event:
    """An event from the daemon. ``timestamp_us`` is in microseconds since 1970."""

    name: str
    data: Mapping[str, Any]
    timestamp_us: int
