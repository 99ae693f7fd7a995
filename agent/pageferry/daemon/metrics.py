"""Metrics for Prometheus: what the daemon knows anyway. A scrape asks no guest and no kernel.

Names follow Prometheus' conventions: base units (seconds, bytes), ``_total`` for counters. Counters
start at 0 with the daemon; those of bytes count running migrations too, as far as their workers
have reported, so that their rates are live. Guests are labels only of what runs now.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pageferry import __version__
from pageferry.daemon.migrations import Migration, MigrationLog

DURATION_BUCKETS_S: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
DOWNTIME_BUCKETS_S: Final = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
"""Around 25 ms, which a switchover takes at least, and 300 ms, the default limit."""

_BYTES: Final = {
    "pageferry_sent_bytes": ("ram", "transferred", "Page contents sent or received"),
    "pageferry_paged_in_bytes": ("residency", "paged-in-bytes", "Guest memory read from swap"),
    "pageferry_paged_out_bytes": ("residency", "paged-out-bytes", "Guest memory given to swap"),
    "pageferry_kept_bytes": ("residency", "kept-bytes", "Paged in, then in use: left in memory"),
    "pageferry_punched_bytes": ("residency", "punched-bytes", "Given back by guests meanwhile"),
}
"""Counters, by where query-migrate has them."""

_GAUGES: Final = {
    "pageferry_migration_total_bytes": ("ram", "total", 1, "Length of the guest's RAM"),
    "pageferry_migration_remaining_bytes": ("ram", "remaining", 1, "Left of the phase"),
    "pageferry_migration_rounds": ("ram", "dirty-sync-count", 1, "Rounds begun"),
    "pageferry_migration_dirty_bytes_per_second": (
        "ram",
        "dirty-pages-rate",
        4096,
        "Memory that the guest writes, by the last round",
    ),
    "pageferry_migration_cold_bytes": ("residency", "cold-bytes", 1, "Swapped when it began"),
    "pageferry_migration_window_bytes": ("residency", "window-bytes", 1, "Page-in window"),
    "pageferry_migration_elapsed_seconds": ("", "total-time", 0.001, "Since it began"),
    "pageferry_migration_expected_downtime_seconds": (
        "",
        "expected-downtime",
        0.001,
        "Downtime if it were stopped now",
    ),
}
"""Gauges of each running migration: where query-migrate has them, and the factor to base units."""


class Metrics:
    """The daemon's metrics, in a registry of their own."""

    def __init__(
        self,
        migrations: MigrationLog,
        clients: Callable[[], int],
        unsettled: Callable[[], int] = lambda: 0,
    ) -> None:
        self.registry = CollectorRegistry()
        self._finished_bytes: Tally[tuple[str, str]] = Tally()
        self._ended = Counter(
            "pageferry_migrations",
            "Migrations that are over",
            ("role", "status"),
            registry=self.registry,
        )
        self._duration = Histogram(
            "pageferry_migration_duration_seconds",
            "From beginning to end",
            ("role", "status"),
            buckets=DURATION_BUCKETS_S,
            registry=self.registry,
        )
        self._downtime = Histogram(
            "pageferry_migration_downtime_seconds",
            "Time without a running vCPU, of completed migrations, told by the source",
            buckets=DOWNTIME_BUCKETS_S,
            registry=self.registry,
        )
        self._commands = Counter(
            "pageferry_control_commands",
            "Commands on the control socket",
            ("command", "result"),
            registry=self.registry,
        )
        for role in ("source", "destination"):
            for status in ("completed", "failed", "cancelled"):
                self._ended.labels(role, status)  # a counter that is missing has no rate
        self.registry.register(_Live(migrations, self._finished_bytes, clients, unsettled))
        ProcessCollector(registry=self.registry)

    def ended(self, migration: Migration, duration_s: float) -> None:
        """A migration is over."""
        self._ended.labels(migration.role, migration.status).inc()
        self._duration.labels(migration.role, migration.status).observe(duration_s)
        downtime_ms = migration.info.get("downtime")
        if migration.status == "completed" and migration.role == "source" and downtime_ms:
            self._downtime.observe(downtime_ms / 1000)
        for name, (table, key, _doc) in _BYTES.items():
            self._finished_bytes[name, migration.role] += _value(migration.info, table, key)

    def command(self, name: str, *, succeeded: bool) -> None:
        """A command was run on the control socket, or refused."""
        self._commands.labels(name, "ok" if succeeded else "error").inc()


class _Live(Collector):
    """What is read from the migrations at a scrape, in this process's memory."""

    def __init__(
        self,
        migrations: MigrationLog,
        finished_bytes: Tally[tuple[str, str]],
        clients: Callable[[], int],
        unsettled: Callable[[], int],
    ) -> None:
        self._migrations = migrations
        self._finished_bytes = finished_bytes
        self._clients = clients
        self._unsettled = unsettled

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        yield InfoMetricFamily("pageferry_build", "The daemon", {"version": __version__})
        yield GaugeMetricFamily(
            "pageferry_control_clients", "Connections to the control socket", self._clients()
        )
        yield GaugeMetricFamily(
            "pageferry_migrations_unsettled",
            "Migrations that were left open: a guest may be waiting, paused",
            self._unsettled(),
        )
        running = self._migrations.running()
        yield self._running(running)
        for name, (table, key, doc) in _BYTES.items():
            family = CounterMetricFamily(name, doc, labels=("role",))
            for role in ("source", "destination"):
                live = sum(_value(m.info, table, key) for m in running if m.role == role)
                family.add_metric((role,), self._finished_bytes[name, role] + live)
            yield family
        for name, (table, key, factor, doc) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, doc, labels=("guest", "role"))
            for migration in running:
                values = migration.info.get(table) or {} if table else migration.info
                if key in values:
                    labels = (migration.guest.label, migration.role)
                    gauge.add_metric(labels, values[key] * factor)
            yield gauge
        phase = GaugeMetricFamily(
            "pageferry_migration_phase",
            "1 for the phase that it is in",
            labels=("guest", "role", "phase"),
        )
        for migration in running:
            labels_of_phase = (migration.guest.label, migration.role, migration.info["phase"])
            phase.add_metric(labels_of_phase, 1)
        yield phase

    def _running(self, running: list[Migration]) -> Metric:
        family = GaugeMetricFamily(
            "pageferry_migrations_running", "Migrations that run", labels=("role",)
        )
        for role in ("source", "destination"):
            family.add_metric((role,), sum(migration.role == role for migration in running))
        return family


def _value(info: dict[str, Any], table: str, key: str) -> int:
    return int((info.get(table) or {}).get(key) or 0)
