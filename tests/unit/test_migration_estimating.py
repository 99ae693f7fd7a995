"""What the downtime estimate rests on."""

from __future__ import annotations

import time

from pageferry.migration.estimating import Estimator
from pageferry.policy.downtime import StopCosts

MS = 1_000_000


def test_what_is_left_of_the_first_pass_was_written_since_tracking_began() -> None:
    began_ns = time.monotonic_ns()
    estimator = Estimator(StopCosts(), tracked_ns=began_ns - 500 * MS)
    estimator.sent(100_000, 400 * MS)
    with estimator.scanning():
        time.sleep(0.01)
    estimator.after_round(1000, 0)
    (first,) = estimator.history.rounds
    assert 500 * MS <= first.since_scan_ns <= 500 * MS + time.monotonic_ns() - began_ns
    assert estimator.costs.scan_ns >= 10 * MS


def test_what_is_left_of_a_round_was_written_since_the_scan_before() -> None:
    estimator = Estimator(StopCosts(), tracked_ns=0)
    with estimator.scanning():
        pass
    before_ns = estimator.scanned_ns
    with estimator.scanning():
        pass
    estimator.after_round(1000, 0)
    assert estimator.history.rounds[-1].since_scan_ns == estimator.scanned_ns - before_ns
