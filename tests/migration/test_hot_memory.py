"""What QEMU has mapped is left alone until the cold pass is over, and arrives all the same."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from typing import Any

import pytest

from pageferry.kernel import procfs
from pageferry.model.blocks import PAGE_BYTES
from pageferry.testing.lab.guests import FreestandingGuest
from pageferry.testing.lab.hosts import minor_faults
from pageferry.testing.lab.latency import Region
from tests.migration.conftest import assert_verified
from tests.migration.pairs import Pair

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu]

MIB = 1024 * 1024
SLOW_PAGE_INS_BYTES = 4 * MIB
"""Of swap bandwidth: the cold pass takes some twenty seconds then."""

FAST_PAGE_INS_BYTES = 4096 * MIB
LEAST_LIMIT_BYTES = 24 * MIB
PROTECTED_BIT = 57
"""Of a pagemap entry: write-protected by a userfaultfd (admin-guide/mm/pagemap.rst)."""


def protected_share(guest: FreestandingGuest, region: Region) -> float:
    """The share of the region's pages whose next write takes a fault that marks it."""
    pid, status = guest.source.pid, os.fstat(guest.source.ram_descriptor())
    (entry,) = procfs.ranges_of_file(pid, status.st_dev, status.st_ino)
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek((entry.start + region.address) // PAGE_BYTES * 8)
        found = struct.unpack(f"={region.pages}Q", pagemap.read(8 * region.pages))
    protected = sum(int(each) >> PROTECTED_BIT & 1 for each in found)
    return protected / region.pages


def under_way(info: dict[str, Any]) -> bool:
    return info.get("phase") == "cold" and info["ram"]["normal"] > 0


def slow(pair: Pair) -> str:
    """Start a migration and wait until it is in its cold pass, where it stays for a while."""
    migration_id = pair.start(**{"max-swap-bandwidth": SLOW_PAGE_INS_BYTES, "verify": True})
    pair.wait_info(under_way)
    return migration_id


def assert_arrives(pair: Pair, migration_id: str) -> None:
    """Let it go on at full speed: it completes, and every page is right."""
    pair.control.execute(
        "migrate-set-parameters",
        **{"migration-id": migration_id, "max-swap-bandwidth": FAST_PAGE_INS_BYTES},
    )
    info = pair.wait_end()
    assert info["status"] == "completed", info
    assert info["verified"] is True
    assert_verified(pair.guest)


def squeeze_hot_memory_out(guest: FreestandingGuest) -> None:
    """Have reclaim take the hot pages, which the guest must not touch meanwhile."""
    cgroup = guest.source.cgroup
    assert cgroup is not None
    assert guest.plan.limit_mib is not None
    deadline = time.monotonic() + 10
    try:
        while guest.hot_resident_share() > 0.3:
            assert time.monotonic() < deadline, guest.source.residency()
            with contextlib.suppress(OSError):
                cgroup.set_limit(max(LEAST_LIMIT_BYTES, cgroup.usage_bytes() - 8 * MIB))
            time.sleep(0.05)
    finally:
        cgroup.set_limit(guest.plan.limit_mib * MIB)


def test_hot_pages_take_no_faults_during_the_cold_pass(swapped_pair: Pair) -> None:
    guest = swapped_pair.guest
    (vcpu,) = guest.source.vcpu_threads()
    before, pass_before = minor_faults(guest.source.pid, vcpu), guest.samples[-1].generation
    migration_id = slow(swapped_pair)
    while guest.samples[-1].generation < pass_before + 3:  # the hot set has been rewritten, whole
        guest.wait_samples(1)
    assert under_way(swapped_pair.info())
    assert minor_faults(guest.source.pid, vcpu) - before < 0.1 * guest.layout.hot.pages
    assert protected_share(guest, guest.layout.cold) > 0.7
    assert_arrives(swapped_pair, migration_id)


def test_pages_that_are_written_and_evicted_before_they_are_protected_arrive(
    swapped_pair: Pair,
) -> None:
    """Reclaim unmaps them then, and leaves nothing in the page tables that tells of the write."""
    guest = swapped_pair.guest
    migration_id = slow(swapped_pair)
    guest.wait_samples(5)
    guest.command(b"s")
    guest.wait_samples(2)
    squeeze_hot_memory_out(guest)
    assert under_way(swapped_pair.info())
    assert_arrives(swapped_pair, migration_id)


def test_pages_that_are_evicted_and_written_again_before_they_are_protected_arrive(
    swapped_pair: Pair,
) -> None:
    guest = swapped_pair.guest
    migration_id = slow(swapped_pair)
    guest.command(b"s")
    guest.wait_samples(2)
    squeeze_hot_memory_out(guest)
    guest.command(b"r")
    guest.wait_samples(5)
    assert under_way(swapped_pair.info())
    assert_arrives(swapped_pair, migration_id)
