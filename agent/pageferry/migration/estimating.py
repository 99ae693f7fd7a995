"""What the downtime estimate rests on: measured in this migration, remembered from earlier ones."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pageferry.policy.downtime import REMEMBERED, StopCosts, expected_downtime_ms, least_downtime_ms
from pageferry.policy.rounds import NS_PER_S, SAMPLE_PAGES, RoundHistory, RoundRecord

log = logging.getLogger(__name__)

COSTS_FILE = "switchover-costs.json"


class Estimator:
    """Collects measurements of one migration. From its trio thread only."""

    def __init__(self, costs: StopCosts, tracked_ns: int) -> None:
        """*tracked_ns*: when writes began to be tracked, on the monotonic clock."""
        self.costs = costs
        self.history = RoundHistory()
        self.pages_written_per_s = 0.0
        self.scanned_ns = tracked_ns
        """When the last scan began, on the monotonic clock; before the first, the tracking."""
        self.since_scan_ns = 0
        """From the scan before it to the last one."""
        self._last_sent: tuple[int, int] = (0, 0)

    @contextmanager
    def scanning(self) -> Iterator[None]:
        """Around one scan of the write marks."""
        began_ns = time.monotonic_ns()
        self.since_scan_ns = began_ns - self.scanned_ns
        self.scanned_ns = began_ns
        yield
        self.costs = replace(self.costs, scan_ns=time.monotonic_ns() - began_ns)

    @contextmanager
    def acknowledging(self) -> Iterator[None]:
        """Around the end of a round: from the barrier to the destination's word."""
        began_ns = time.monotonic_ns()
        yield
        self.costs = replace(self.costs, round_trip_ns=time.monotonic_ns() - began_ns)

    def paged_in(self, pages: int, duration_ns: int) -> None:
        """How fast the swap device is, from a cold pass."""
        if pages >= SAMPLE_PAGES and duration_ns > 0:
            rate = pages * NS_PER_S / duration_ns
            self.costs = replace(self.costs, swapped_pages_per_s=rate)

    def sent(self, pages: int, duration_ns: int) -> None:
        """A round has sent so many pages with payload in this time."""
        self._last_sent = (pages, duration_ns)

    def after_round(self, remaining_pages: int, throttle_percent: int) -> None:
        """A scan after the last round found so many pages written, or owed for another reason."""
        pages, duration_ns = self._last_sent
        self.history = self.history.with_round(
            RoundRecord(pages, duration_ns, remaining_pages, throttle_percent, self.since_scan_ns)
        )

    def expected_ms(self, swapped_pages: int = 0) -> int | None:
        """The downtime to expect if the guest were stopped now; None: cannot be told."""
        return expected_downtime_ms(
            self.history, self.costs, self.pages_written_per_s, swapped_pages
        )

    @property
    def least_ms(self) -> int:
        """The downtime with nothing left to send."""
        return least_downtime_ms(self.costs)


def remembered_costs(state_dir: Path) -> StopCosts:
    """What earlier switchovers on this host cost; what was assumed where there were none."""
    handovers_ns, stops_ns = _read(state_dir / COSTS_FILE)
    return StopCosts().remembering(handovers_ns, stops_ns)


def remember_costs(state_dir: Path, handover_ns: int, stop_ns: int) -> None:
    """Keep what this switchover cost. Best effort: an estimate is not worth a failure."""
    path = state_dir / COSTS_FILE
    handovers_ns, stops_ns = _read(path)
    kept = {
        "handover-ns": [*handovers_ns, handover_ns][-REMEMBERED:],
        "stop-ns": [*stops_ns, stop_ns][-REMEMBERED:],
    }
    try:
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(kept))
        scratch.replace(path)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error.strerror)


def _read(path: Path) -> tuple[list[int], list[int]]:
    try:
        found = json.loads(path.read_text())
        lists = found["handover-ns"], found["stop-ns"]
        if all(type(value) is int and value >= 0 for values in lists for value in values):
            return lists
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return [], []
