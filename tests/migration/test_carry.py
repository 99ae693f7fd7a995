"""Whole migrations of real guests: every byte arrives, and residency is on both ends as it was."""

from __future__ import annotations

import os

import pytest

from pageferry.model.residency import ResidencyBytes
from pageferry.testing.lab.carrying import GUEST_NAME
from pageferry.testing.lab.cgroups import LabCgroup
from tests.conftest import generation
from tests.migration.conftest import MakePair, assert_verified, small_plan, tiny_plan
from tests.migration.pairs import Pair, traces_in

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu]

MIB = 1024 * 1024

CARRIED = [("qemu-7.2", "file"), ("qemu-7.2", "memfd"), ("qemu-10.0", "file")]


def close_to(found: int, wanted: int, share: float) -> bool:
    """Within a share of what is wanted, or 4 MiB: QEMU's own few pages count for little guests."""
    return abs(found - wanted) <= max(share * wanted, 4 * MIB)


def charged_shmem_bytes(cgroup: LabCgroup) -> int:
    return cgroup.stat()["shmem"]


def assert_kept(before: ResidencyBytes, after: ResidencyBytes, zero_bytes: int) -> None:
    """The destination is as the source was; its pages of zeros are holes."""
    assert close_to(after.swapped_bytes, before.swapped_bytes, 0.05), (before, after)
    assert close_to(after.resident_bytes, before.resident_bytes - zero_bytes, 0.10), (before, after)
    assert after.hole_bytes >= before.hole_bytes


@pytest.mark.parametrize(("qemu", "backend"), CARRIED)
def test_carries_a_running_guest(
    qemu: str, backend: str, host_swap: object, make_pair: MakePair
) -> None:
    plan = small_plan(generation(qemu), backend=backend)
    pair = make_pair(plan)
    found = traces_in(pair.source)
    before = pair.source.residency()
    assert before.swapped_bytes > 70 * MIB
    result = pair.migrate("--verify")
    assert result.status == 0, (result.reason, pair.here.log(), pair.there.log())
    after = pair.destination.residency()
    assert pair.source.status() == "postmigrate"
    assert pair.destination.status() == "running"
    assert result.final_info["verified"] is True
    # Where it came from nothing is left, and what was paged in went out again.
    left = traces_in(pair.source)
    assert (left.userfaultfds, left.protected_ranges) == (0, 0)
    assert found.userfaultfds == 0
    source_after = pair.source.residency()
    assert source_after.hole_bytes == before.hole_bytes
    assert close_to(source_after.swapped_bytes, before.swapped_bytes, 0.10)
    assert_kept(before, after, plan.zero_mib * MIB)
    # What is resident is charged to the destination QEMU's cgroup, not to the agent's.
    cgroup = pair.destination.cgroup
    assert cgroup is not None
    assert close_to(charged_shmem_bytes(cgroup), after.resident_bytes, 0.02)
    assert pair.journal_phases() == {"source": "completed", "destination": "running"}
    assert_verified(pair.guest)


def test_a_memfd_is_refused_on_a_qemu_that_would_send_it_itself(make_pair: MakePair) -> None:
    pair = make_pair(tiny_plan(generation("qemu-10.0"), backend="memfd"))
    result = pair.migrate()
    assert result.status == 3
    assert "memfd" in result.error["message"]
    assert "memory-backend-file" in result.error["advice"]
    assert "mem-path=/dev/shm" in result.error["advice"]
    assert pair.source.status() == "running"
    assert_verified(pair.guest)


def test_a_paused_guest_arrives_paused(tiny_pair: Pair) -> None:
    tiny_pair.source.monitor.execute("stop")
    result = tiny_pair.migrate("--verify")
    assert result.status == 0, result.reason
    assert tiny_pair.source.status() == "postmigrate"
    assert tiny_pair.destination.status() == "paused"
    tiny_pair.destination.monitor.execute("cont")
    assert_verified(tiny_pair.guest)


def test_a_guest_is_known_by_its_qmp_socket_as_well(tiny_pair: Pair) -> None:
    path = os.fspath(tiny_pair.source.qmp_path)
    result = tiny_pair.here.migrate(path, tiny_pair.there, "--destination-guest", GUEST_NAME)
    assert result.status == 0, result.reason
    assert_verified(tiny_pair.guest)


def test_a_guest_that_writes_without_a_pause_arrives_whole(
    host_swap: object, make_pair: MakePair, newest_qemu: object
) -> None:
    plan = small_plan(generation("qemu-10.0"), pace=0)
    pair = make_pair(plan)
    result = pair.migrate("--verify")
    assert result.status == 0, result.reason
    assert_verified(pair.guest)


def test_giving_up_leaves_the_guest_where_it_was(make_pair: MakePair) -> None:
    """One that writes faster than it can be sent, with a downtime limit that does not allow it."""
    plan = tiny_plan(generation("qemu-10.0"), pace=0, ram_mib=256, hot_mib=96)
    pair = make_pair(plan, defaults={"max-rounds": 3})
    found = traces_in(pair.source)
    result = pair.migrate("--downtime-limit", "1")
    assert result.status == 1
    assert "faster than it can be sent" in result.error["message"]
    assert "downtime-limit" in result.error["advice"]
    assert result.error["guest-state"] == "on the source, as before"
    assert traces_in(pair.source) == found
    assert pair.destination.status() == "inmigrate"
    assert_verified(pair.guest)


def test_holes_and_zeros_never_become_memory(tiny_pair: Pair) -> None:
    before = tiny_pair.source.residency()
    assert before.hole_bytes > 16 * MIB
    result = tiny_pair.migrate()
    assert result.status == 0, result.reason
    assert tiny_pair.source.residency().hole_bytes == before.hole_bytes
    zero_bytes = tiny_pair.guest.plan.zero_mib * MIB
    assert tiny_pair.destination.residency().hole_bytes >= before.hole_bytes + zero_bytes
    assert_verified(tiny_pair.guest)
