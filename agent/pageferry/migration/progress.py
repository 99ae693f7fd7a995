"""What a migration has done so far, counted by threads and read by whoever shows it.

The numbers only grow within a migration, and a phase's progress is what has been done of it, so
nothing that is shown ever runs backwards. Keys are QAPI's (MigrationInfo, MigrationRAMInfo) where
they mean the same; sizes in bytes, times in milliseconds as QAPI has them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from pageferry.model.blocks import PAGE_BYTES


@dataclass(slots=True)
class SwitchoverProgress:
    """What the downtime consisted of, as far as it has come."""

    last_round_ns: int = 0
    device_ns: int = 0
    commit_ns: int = 0
    written_pages: int = 0
    swapped_pages: int = 0

    def info(self) -> dict[str, Any]:
        """For query-migrate. Fractions of milliseconds: the parts are small."""
        return {
            "last-round": round(self.last_round_ns / 1e6, 3),
            "device": round(self.device_ns / 1e6, 3),
            "commit": round(self.commit_ns / 1e6, 3),
            "written-bytes": self.written_pages * PAGE_BYTES,
            "swapped-bytes": self.swapped_pages * PAGE_BYTES,
        }


@dataclass(slots=True)
class Progress:
    """Counters of one side. Methods may be called from any thread."""

    migration_id: str
    guest: str
    started_ns: int
    status: str = "setup"
    phase: str = "look"
    destination: str = ""
    way: str = ""
    total_bytes: int = 0
    round: int = 0
    normal_pages: int = 0
    zero_pages: int = 0
    punched_pages: int = 0
    cold_pages: int = 0
    packed_pages: int = 0
    saved_bytes: int = 0
    paged_in_pages: int = 0
    paged_out_pages: int = 0
    kept_pages: int = 0
    window_bytes: int = 0
    phase_done_pages: int = 0
    phase_total_pages: int = 0
    remaining_pages: int = 0
    dirty_pages_rate: int = 0
    setup_ns: int = 0
    downtime_ns: int | None = None
    expected_downtime_ms: int | None = None
    switchover: SwitchoverProgress = field(default_factory=SwitchoverProgress)
    throttle_percent: int | None = None
    swap_bandwidth: int | None = None
    finished_ns: int | None = None
    drain_ns: list[int] = field(default_factory=list)
    verified: bool | None = None
    error: dict[str, str] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _rate_mark: tuple[int, int] = (0, 0)
    _pages_per_second: int = 0

    def enter(self, phase: str, total_pages: int = 0) -> None:
        """Begin a phase of *total_pages* pages."""
        with self._lock:
            self.phase = phase
            self.phase_done_pages = 0
            self.phase_total_pages = total_pages
            self.remaining_pages = total_pages

    def sent(self, normal_pages: int, zero_pages: int, saved_bytes: int = 0) -> None:
        """A batch has gone out, in *saved_bytes* less than its pages have."""
        with self._lock:
            if saved_bytes:
                self.packed_pages += normal_pages
                self.saved_bytes += saved_bytes
            self.normal_pages += normal_pages
            self.zero_pages += zero_pages
            pages = normal_pages + zero_pages
            self.phase_done_pages += pages
            # Pages that appeared while a phase ran (a batch split by a race) widen it.
            self.phase_total_pages = max(self.phase_total_pages, self.phase_done_pages)
            self.remaining_pages = self.phase_total_pages - self.phase_done_pages

    def received(self, normal_pages: int, zero_pages: int) -> None:
        """A batch has come in. How many will come, only the source knows."""
        with self._lock:
            self.normal_pages += normal_pages
            self.zero_pages += zero_pages

    def paged(self, paged_in_pages: int, paged_out_pages: int, kept_pages: int) -> None:
        """A cold batch has been paged in and out again, but for *kept_pages* that stayed in."""
        with self._lock:
            self.paged_in_pages += paged_in_pages
            self.paged_out_pages += paged_out_pages
            self.kept_pages += kept_pages

    def info(self, now_ns: int) -> dict[str, Any]:
        """A map like QMP's answer to query-migrate, with our own keys beside QAPI's."""
        with self._lock:
            return self._info(now_ns)

    def _info(self, now_ns: int) -> dict[str, Any]:
        end_ns = self.finished_ns if self.finished_ns is not None else now_ns
        elapsed_ns = max(1, end_ns - self.started_ns)
        normal_bytes = self.normal_pages * PAGE_BYTES
        transferred = normal_bytes - self.saved_bytes
        self._update_rate(end_ns)
        info: dict[str, Any] = {
            "status": self.status,
            "phase": self.phase,
            "migration-id": self.migration_id,
            "guest": self.guest,
            "destination": self.destination,
            "total-time": elapsed_ns // 1_000_000,
            "setup-time": self.setup_ns // 1_000_000,
            "ram": {
                "transferred": transferred,
                "remaining": self.remaining_pages * PAGE_BYTES,
                "total": self.total_bytes,
                "duplicate": self.zero_pages,
                "normal": self.normal_pages,
                "normal-bytes": normal_bytes,
                "dirty-sync-count": self.round,
                "mbps": round(transferred * 8_000 / elapsed_ns, 1),
                "pages-per-second": self._pages_per_second,
                "dirty-pages-rate": self.dirty_pages_rate,
                "page-size": PAGE_BYTES,
            },
            "residency": {
                "cold-bytes": self.cold_pages * PAGE_BYTES,
                "paged-in-bytes": self.paged_in_pages * PAGE_BYTES,
                "paged-out-bytes": self.paged_out_pages * PAGE_BYTES,
                "kept-bytes": self.kept_pages * PAGE_BYTES,
                "punched-bytes": self.punched_pages * PAGE_BYTES,
                "window-bytes": self.window_bytes,
                "way": self.way,
            },
            "progress": {
                "phase-done-bytes": self.phase_done_pages * PAGE_BYTES,
                "phase-total-bytes": self.phase_total_pages * PAGE_BYTES,
            },
            "compression": self._compression(),
            "drains": {
                "count": len(self.drain_ns),
                "longest-ms": round(max(self.drain_ns, default=0) / 1e6, 3),
            },
        }
        if self.verified is not None:
            info["verified"] = self.verified
        if self.downtime_ns is not None:
            # A fraction of a millisecond is not QAPI's, but 6 and 7 ms are worth telling apart.
            info["downtime"] = round(self.downtime_ns / 1e6, 3)
        if self.switchover.last_round_ns:
            info["switchover"] = self.switchover.info()
        if self.throttle_percent is not None:
            info["cpu-throttle-percentage"] = self.throttle_percent
        if self.swap_bandwidth is not None:
            info["residency"]["swap-bandwidth"] = self.swap_bandwidth
        if self.expected_downtime_ms is not None:
            info["expected-downtime"] = self.expected_downtime_ms
        if self.error is not None:
            info["error"] = self.error
            info["error-desc"] = self.error.get("message", "")
        return info

    def _compression(self) -> dict[str, Any]:
        """QAPI's CompressionStats, as far as they fit."""
        packed_bytes = self.packed_pages * PAGE_BYTES - self.saved_bytes
        return {
            "pages": self.packed_pages,
            "compressed-size": packed_bytes,
            "compression-rate": (
                round(self.packed_pages * PAGE_BYTES / packed_bytes, 2) if packed_bytes else 0.0
            ),
        }

    def _update_rate(self, now_ns: int) -> None:
        """Pages per second over the time since the mark, which moves once a second."""
        marked_ns, marked_pages = self._rate_mark
        pages = self.normal_pages + self.zero_pages
        since_ns = now_ns - (marked_ns or self.started_ns)
        if since_ns >= 1_000_000_000:
            self._pages_per_second = (pages - marked_pages) * 1_000_000_000 // since_ns
            self._rate_mark = (now_ns, pages)
        elif not marked_ns and since_ns > 0:
            self._pages_per_second = pages * 1_000_000_000 // since_ns
