"""What the daemon tells about migrations and guests, typed.

Keys that a newer daemon added are kept in ``raw`` and otherwise ignored; keys that an older one
does not send read as zero or None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    kept_bytes: int = 0
    punched_bytes: int = 0
    window_bytes: int = 0
    cpu_throttle_percentage: int | None = None

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
            # As a journal has it, where no daemon saw the end.
            kind = "cancelled" if raw.get("status") == "cancelled" else "failed"
            error = {"kind": kind, "message": raw["error-desc"]}
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
            kept_bytes=residency.get("kept-bytes", 0),
            punched_bytes=residency.get("punched-bytes", 0),
            window_bytes=residency.get("window-bytes", 0),
            cpu_throttle_percentage=raw.get("cpu-throttle-percentage"),
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
    role: str = ""
    configured: bool = True

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
            role=raw.get("role", ""),
            configured=raw.get("configured", True),
        )


@dataclass(frozen=True, slots=True)
class Event:
    """An event from the daemon. ``timestamp_us`` is in microseconds since 1970."""

    name: str
    data: Mapping[str, Any]
    timestamp_us: int


def event_of(message: Mapping[str, Any]) -> Event:
    """From a message of the daemon's that is an event."""
    stamp = _map(message, "timestamp")
    timestamp_us = stamp.get("seconds", 0) * 1_000_000 + stamp.get("microseconds", 0)
    return Event(message["event"], _map(message, "data"), timestamp_us)


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The daemon, from query-status. ``access`` is ``full`` or ``read-only``: this client's."""

    raw: Mapping[str, Any]
    status: str
    running_migrations: int
    listen: str
    state_directory: str
    access: str

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> DaemonStatus:
        """From what query-status answers with."""
        return cls(
            raw=raw,
            status=raw.get("status", ""),
            running_migrations=raw.get("migrations", 0),
            listen=raw.get("listen", ""),
            state_directory=raw.get("state-directory", ""),
            access=raw.get("access", "full"),
        )


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A migration that is over. Times in seconds since 1970; ``info`` None: only its journal was
    left to tell."""

    raw: Mapping[str, Any]
    migration_id: str
    role: str
    guest: str
    status: str
    started_s: float
    ended_s: float
    destination: str
    reason: str
    info: MigrationInfo | None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> HistoryEntry:
        """From one element of what query-migrate-history answers with."""
        info = _map(raw, "info")
        return cls(
            raw=raw,
            migration_id=raw.get("migration-id", ""),
            role=raw.get("role", ""),
            guest=raw.get("guest", ""),
            status=raw.get("status", ""),
            started_s=raw.get("started", 0.0),
            ended_s=raw.get("ended", 0.0),
            destination=raw.get("destination", ""),
            reason=raw.get("reason", ""),
            info=MigrationInfo.from_dict(info) if info else None,
        )


@dataclass(frozen=True, slots=True)
class BlockResidency:
    """Where the memory of one RAM block is, in bytes; and, when asked for, cell by cell in pages.

    Both maps have one number for each ``cell_bytes`` of the block, the last cell may be shorter.
    """

    name: str
    resident_bytes: int
    swapped_bytes: int
    hole_bytes: int
    cell_bytes: int = 0
    resident_map: Sequence[int] = ()
    swapped_map: Sequence[int] = ()

    @property
    def length_bytes(self) -> int:
        """The length of the block."""
        return self.resident_bytes + self.swapped_bytes + self.hole_bytes

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> BlockResidency:
        """From one element of ``blocks``."""
        return cls(
            name=raw.get("name", ""),
            resident_bytes=raw.get("resident-bytes", 0),
            swapped_bytes=raw.get("swapped-bytes", 0),
            hole_bytes=raw.get("hole-bytes", 0),
            cell_bytes=raw.get("cell-bytes", 0),
            resident_map=tuple(raw.get("resident-map", ())),
            swapped_map=tuple(raw.get("swapped-map", ())),
        )


@dataclass(frozen=True, slots=True)
class Residency:
    """Where a guest's RAM is. ``way`` is how that was learnt."""

    raw: Mapping[str, Any]
    way: str
    resident_bytes: int
    swapped_bytes: int
    hole_bytes: int
    blocks: Sequence[BlockResidency]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Residency:
        """From what query-residency answers with."""
        total = _map(raw, "total")
        return cls(
            raw=raw,
            way=raw.get("way", ""),
            resident_bytes=total.get("resident-bytes", 0),
            swapped_bytes=total.get("swapped-bytes", 0),
            hole_bytes=total.get("hole-bytes", 0),
            blocks=[BlockResidency.from_dict(each) for each in raw.get("blocks", ())],
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a migration would cost. Rates in bytes per second; ``…_assumed``: not given."""

    raw: Mapping[str, Any]
    transfer_bytes: int
    page_in_bytes: int
    resident_bytes: int
    swapped_bytes: int
    hole_bytes: int
    total_time_ms: int
    rounds: int
    dirty_bytes_per_s: int
    expected_downtime_ms: int
    converges: bool
    sample_s: float
    bandwidth: int
    bandwidth_assumed: bool
    swap_bandwidth: int
    swap_bandwidth_assumed: bool

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Estimate:
        """From what migrate-estimate answers with."""
        residency = _map(raw, "residency")
        return cls(
            raw=raw,
            transfer_bytes=raw.get("transfer-bytes", 0),
            page_in_bytes=raw.get("page-in-bytes", 0),
            resident_bytes=residency.get("resident-bytes", 0),
            swapped_bytes=residency.get("swapped-bytes", 0),
            hole_bytes=residency.get("hole-bytes", 0),
            total_time_ms=raw.get("total-time", 0),
            rounds=raw.get("rounds", 0),
            dirty_bytes_per_s=raw.get("dirty-bytes-per-second", 0),
            expected_downtime_ms=raw.get("expected-downtime", 0),
            converges=raw.get("converges", False),
            sample_s=raw.get("sample-time", 0.0),
            bandwidth=raw.get("bandwidth", 0),
            bandwidth_assumed=raw.get("bandwidth-assumed", True),
            swap_bandwidth=raw.get("swap-bandwidth", 0),
            swap_bandwidth_assumed=raw.get("swap-bandwidth-assumed", True),
        )


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of one side of a migration that recovery looked at.

    ``plan`` follows from what was ``found``, and is empty where there is nothing to do; ``lost``:
    the guest ended with the destination's QEMU.
    """

    raw: Mapping[str, Any]
    migration_id: str
    settled: bool
    message: str
    role: str
    guest: str
    phase: str = ""
    found: str = ""
    plan: str = ""
    lost: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Settlement:
        """From one element of what migrate-recover answers with."""
        return cls(
            raw=raw,
            migration_id=raw.get("migration-id", ""),
            settled=raw.get("settled", False),
            message=raw.get("message", ""),
            role=raw.get("role", ""),
            guest=raw.get("guest", ""),
            phase=raw.get("phase", ""),
            found=raw.get("found", ""),
            plan=raw.get("plan", ""),
            lost=raw.get("lost", False),
        )


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the doctor looked at. ``verdict``: ok, degraded, blocked or unknown.

    ``free_bytes``: of the host's memory, swap or tmpfs; ``resident_bytes`` and ``swapped_bytes``:
    of the guest's RAM; None for all else.
    """

    raw: Mapping[str, Any]
    section: str
    name: str
    verdict: str
    found: str
    fix: str
    guest: str
    free_bytes: int | None
    resident_bytes: int | None = None
    swapped_bytes: int | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Check:
        """From one element of what query-doctor answers with."""
        return cls(
            raw=raw,
            section=raw.get("section", ""),
            name=raw.get("name", ""),
            verdict=raw.get("verdict", "unknown"),
            found=raw.get("found", ""),
            fix=raw.get("fix", ""),
            guest=raw.get("guest", ""),
            free_bytes=raw.get("free-bytes"),
            resident_bytes=raw.get("resident-bytes"),
            swapped_bytes=raw.get("swapped-bytes"),
        )
