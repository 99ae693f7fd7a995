"""Guests that write faster than can be sent: throttled, given up, or switched over all the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageferry.kernel.cgroup import locate
from pageferry.kernel.cpu_throttle import PREFIX
from pageferry.testing.lab.qemus import LabQemu
from tests.conftest import generation
from tests.migration.conftest import MakePair, assert_verified, tiny_plan
from tests.migration.pairs import Pair, traces_in

pytestmark = [pytest.mark.root, pytest.mark.qemu]

MIB = 1024 * 1024
DEADLINE_S = 40.0
"""Far more than any of this takes on an idle machine: 6 s at most."""


@pytest.fixture
def busy_pair(make_pair: MakePair, newest_qemu: object) -> Pair:
    """A guest that rewrites 96 MiB without a pause, several times in each round."""
    return make_pair(tiny_plan(generation("qemu-10.0"), pace=0, ram_mib=256, hot_mib=96))


def vcpu_cgroups(qemu: LabQemu) -> set[Path]:
    """The cpu cgroups that the vCPU threads are in."""
    threads = [each["thread-id"] for each in qemu.monitor.execute("query-cpus-fast")]
    return {locate(Path(f"/proc/{qemu.pid}/task/{tid}/cgroup"), "cpu")[1] for tid in threads}


def throttle_cgroups(parents: set[Path]) -> list[Path]:
    return [path for parent in parents for path in parent.glob(f"{PREFIX}*")]


def wait_until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def rounds_of(info: dict[str, Any]) -> int:
    return int(info.get("ram", {}).get("dirty-sync-count", 0))


def throttled(pair: Pair, percent: int) -> dict[str, Any]:
    return pair.wait_info(
        lambda info: info.get("cpu-throttle-percentage", 0) >= percent, DEADLINE_S
    )


def test_a_guest_that_does_not_converge_is_throttled_until_it_does(busy_pair: Pair) -> None:
    before = vcpu_cgroups(busy_pair.source)
    # Without a cap a fast machine carries rounds so short that they converge by themselves. With
    # this one the guest has written all of its 96 MiB again in the second that a round takes.
    busy_pair.start(
        **{
            "auto-converge": True,
            "downtime-limit": 150,
            "cpu-throttle-increment": 20,
            "max-bandwidth": 100 * MIB,
        }
    )
    steps: list[int] = []

    def ended(info: dict[str, Any]) -> bool:
        percent = info.get("cpu-throttle-percentage")
        if percent and percent not in steps:
            steps.append(percent)
        return info["status"] in ("completed", "failed")

    info = busy_pair.wait_info(ended, DEADLINE_S)
    assert info["status"] == "completed", info
    assert steps
    assert steps == sorted(steps)
    assert all(step in (20, 40, 60, 80, 99) for step in steps)
    assert info["expected-downtime"] <= 150
    assert info["cpu-throttle-percentage"] == 0
    # The source's QEMU is left as it was.
    assert vcpu_cgroups(busy_pair.source) == before
    assert not throttle_cgroups(before)
    assert_verified(busy_pair.guest)


def test_a_throttle_is_bounded_and_then_it_is_given_up(busy_pair: Pair) -> None:
    before = vcpu_cgroups(busy_pair.source)
    found = traces_in(busy_pair.source)
    busy_pair.start(
        **{
            "auto-converge": True,
            "downtime-limit": 1,
            "cpu-throttle-initial": 15,
            "max-cpu-throttle": 30,
        }
    )
    seen: set[int] = set()

    def ended(info: dict[str, Any]) -> bool:
        seen.add(info.get("cpu-throttle-percentage", 0))
        return info["status"] in ("completed", "failed")

    info = busy_pair.wait_info(ended, DEADLINE_S)
    assert info["status"] == "failed"
    assert max(seen) == 30
    assert "30 % taken from its vCPUs" in info["error"]["message"]
    assert traces_in(busy_pair.source) == found
    assert vcpu_cgroups(busy_pair.source) == before
    assert not throttle_cgroups(before)
    assert_verified(busy_pair.guest)


def test_it_is_switched_over_with_the_longer_downtime_where_that_was_asked(busy_pair: Pair) -> None:
    busy_pair.start(**{"downtime-limit": 1, "max-rounds": 4, "on-no-convergence": "switch-over"})
    info = busy_pair.wait_end(DEADLINE_S)
    assert info["status"] == "completed", info
    assert info["ram"]["dirty-sync-count"] >= 4
    assert info["expected-downtime"] > 1
    # With the guest stopped more of the processors is ours: the estimate is on the safe side.
    assert info["downtime"] <= 1.5 * info["expected-downtime"] + 150
    parts = info["switchover"]
    whole = parts["last-round"] + parts["device"] + parts["commit"]
    assert whole == pytest.approx(info["downtime"], abs=1)
    assert_verified(busy_pair.guest)


def test_a_bandwidth_cap_holds_until_it_is_lifted_in_flight(busy_pair: Pair) -> None:
    cap = 20 * MIB
    migration_id = busy_pair.start(**{"max-bandwidth": cap})
    info = busy_pair.wait_info(lambda info: transferred(info) > 0, DEADLINE_S)
    first, began_s = transferred(info), time.monotonic()
    time.sleep(1.5)
    last, ended_s = transferred(busy_pair.info()), time.monotonic()
    # The status comes five times a second.
    assert last - first <= cap * (ended_s - began_s + 0.25)
    assert last - first >= cap * (ended_s - began_s - 0.5)
    busy_pair.control.execute(
        "migrate-set-parameters",
        **{"migration-id": migration_id, "max-bandwidth": 0, "downtime-limit": 5000},
    )
    assert busy_pair.wait_end(DEADLINE_S)["status"] == "completed"
    assert_verified(busy_pair.guest)


def transferred(info: dict[str, Any]) -> int:
    return int(info.get("ram", {}).get("transferred", 0))


def test_going_on_lasts_until_a_parameter_lets_it_end(busy_pair: Pair) -> None:
    """The downtime limit is raised in flight, beyond the rounds that were allowed."""
    migration_id = busy_pair.start(
        **{"downtime-limit": 1, "max-rounds": 3, "on-no-convergence": "continue"}
    )
    busy_pair.wait_info(lambda info: rounds_of(info) > 8, DEADLINE_S)
    busy_pair.control.execute(
        "migrate-set-parameters", **{"migration-id": migration_id, "downtime-limit": 5000}
    )
    info = busy_pair.wait_end(5)
    assert info["status"] == "completed", info
    assert info["downtime"] < 5000
    assert_verified(busy_pair.guest)


def test_a_timeout_ends_rounds_that_would_not(busy_pair: Pair) -> None:
    busy_pair.start(
        **{
            "downtime-limit": 1,
            "on-no-convergence": "continue",
            "timeout": 6,
        }
    )
    info = busy_pair.wait_end(DEADLINE_S)
    assert info["status"] == "failed"
    assert "timeout of 6 s" in info["error"]["message"]
    assert busy_pair.source.status() == "running"
    assert_verified(busy_pair.guest)


@pytest.mark.parametrize("with_guard", [False, True])
def test_a_guest_whose_agent_is_killed_gets_its_time_back(
    with_guard: bool, busy_pair: Pair
) -> None:
    """The guard sees to it; and when that is killed as well, the daemon."""
    before = vcpu_cgroups(busy_pair.source)
    busy_pair.start(**{"auto-converge": True, "downtime-limit": 1, "on-no-convergence": "continue"})
    throttled(busy_pair, 50)
    [cgroup] = vcpu_cgroups(busy_pair.source)
    assert cgroup.name.startswith(PREFIX)
    assert cgroup.parent in before
    [worker] = busy_pair.here.workers()
    if with_guard:
        for guard in children_of(worker):
            os.kill(guard, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: vcpu_cgroups(busy_pair.source) == before, "still throttled")
    wait_until(lambda: not cgroup.exists(), "the cgroup is still there")
    assert busy_pair.source.status() == "running"
    assert busy_pair.guest.wait_samples(5)
    wait_until(lambda: busy_pair.journal_phases()["source"] == "failed", "not settled")
    assert_verified(busy_pair.guest)


def children_of(pid: int) -> list[int]:
    """Its child processes, whichever thread started them."""
    return [
        int(word)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for word in path.read_text().split()
    ]
