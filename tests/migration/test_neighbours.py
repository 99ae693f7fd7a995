"""A neighbour that lives from its swap goes on while a guest is carried.

Seen on a quiet machine of two processors: 0.69 and 0.77 of its usual touches with pacing (10 to
12 s in all), 0.47 and 0.59 without (5 s). What is left of the loss is processors, not swap.
"""

from __future__ import annotations

import time

import pytest

from pageferry.testing.lab.carrying import GUEST_NAME, daemons_for
from pageferry.testing.lab.neighbours import neighbour
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.settled import overcommitted_plan, settled_pair

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu, pytest.mark.slow]

USUAL_S = 2.0
"""How long the neighbour is watched before the migration."""


def test_a_neighbour_keeps_half_of_its_speed(host_swap: object, newest_qemu: QemuBinary) -> None:
    with (
        settled_pair(overcommitted_plan(newest_qemu)) as guest,
        daemons_for(guest) as (source, destination),
        neighbour() as other,
    ):
        other.wait_running()
        usual_s = time.monotonic()
        time.sleep(USUAL_S)
        begin_s = time.monotonic()
        result = source.migrate(GUEST_NAME, destination)
        end_s = time.monotonic()
        assert result.status == 0, result.reason
        share = other.touches_per_s(begin_s, end_s) / other.touches_per_s(usual_s, begin_s)
        limits = [
            (line.get("info") or {}).get("residency", {}).get("swap-bandwidth", 0)
            for line in result.lines
        ]
        print(f"\nthe neighbour kept {share:.2f} of its speed, {end_s - begin_s:.1f} s in all")
        assert share >= 0.5
        assert any(limits), "nobody asked how the neighbour fares"
        verification = guest.verify()
        assert verification.pages > 0
        assert verification.bad == 0
