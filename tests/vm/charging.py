"""Where a migration's memory is charged under cgroup version 2. Run in the VM, by name.

Both agents run in cgroups of their own beside those of the two QEMUs, so that what is charged
to the wrong one shows. Each test prints what it found as one line, ``FIGURES`` and a JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pageferry.kernel import paging
from pageferry.kernel.cgroup import memory_cgroup_of
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import Runs
from pageferry.model.blocks import PAGE_BYTES
from pageferry.testing.lab.carrying import GUEST_NAME, daemons_for
from pageferry.testing.lab.cgroups import LabCgroup, hierarchy, memory_cgroup
from pageferry.testing.lab.daemons import Network
from pageferry.testing.lab.guests import FreestandingGuest, GuestPlan
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.qemus import LabQemu
from pageferry.testing.lab.settled import settled_pair
from pageferry.testing.lab.threaded import EMULATOR, scatter_threads

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu, pytest.mark.timeout(600)]

MIB = 1024 * 1024
PAGED_IN_BYTES = 8 * MIB

SLACK_BYTES = 2 * MIB
"""The guest goes on meanwhile, and the kernel counts for some 64 pages a processor at once."""


COLD_SHARE = 0.5
"""Of the cold memory to be in swap at the start. The limit alone brings that about: squeezing more
out makes QEMU read its own code again and again.
"""

LIMIT_MIB = 72

JOURNAL_BYTES = 64 * 1024
"""An agent's journal, which lies on tmpfs here, is shmem of its own."""


def small_plan(binary: QemuBinary) -> GuestPlan:
    """A guest whose memory and QEMU's own, some 40 MiB, exceed the limit together."""
    return GuestPlan(
        binary, ram_mib=96, cold_mib=64, hot_mib=2, zero_mib=2, pace=1, limit_mib=LIMIT_MIB
    )


@dataclass(frozen=True, slots=True)
class Charges:
    """What is charged to one cgroup, in bytes: shmem that is resident, swap, and the highest that
    all of its memory came to; and how often something in it was killed for want of memory.
    """

    shmem: int
    swap: int
    peak: int
    oom_kills: int


def charges_of(group: LabCgroup) -> Charges:
    events = (group.path / "memory.events").read_text().split()
    return Charges(
        shmem=group.stat()["shmem"],
        swap=int((group.path / "memory.swap.current").read_text()),
        peak=int((group.path / "memory.peak").read_text()),
        oom_kills=int(events[events.index("oom_kill") + 1]),
    )


def cgroup_of(qemu: LabQemu) -> LabCgroup:
    assert qemu.cgroup is not None
    return qemu.cgroup


@contextlib.contextmanager
def member_of(group: LabCgroup) -> Iterator[None]:
    """This process is in `group`, as an agent that was started there is."""
    group.join(os.getpid())
    try:
        yield
    finally:
        (hierarchy().mount / "cgroup.procs").write_text(str(os.getpid()))


@contextlib.contextmanager
def agents() -> Iterator[tuple[LabCgroup, LabCgroup]]:
    """Cgroups for the source's agent and the destination's."""
    with memory_cgroup("agent-source") as here, memory_cgroup("agent-destination") as there:
        yield here, there


def show(**figures: object) -> None:
    values = {
        name: vars_of(value) if isinstance(value, Charges) else value
        for name, value in figures.items()
    }
    print("FIGURES", json.dumps(values))


def vars_of(charges: Charges) -> dict[str, int]:
    return {name: getattr(charges, name) for name in Charges.__slots__}


def cold_runs(guest: FreestandingGuest, length_bytes: int) -> Runs:
    """The first pages of the guest's cold memory."""
    first = guest.layout.cold.address // PAGE_BYTES
    return Runs.from_pairs([(first, length_bytes // PAGE_BYTES)])


def check_page_in_is_charged_to_the_guest(guest: FreestandingGuest, agent: LabCgroup) -> None:
    """Cold pages that an agent pages in are charged to the guest, and leave it when paged out."""
    source = cgroup_of(guest.source)
    runs = cold_runs(guest, PAGED_IN_BYTES)
    descriptor = os.open(guest.source.ram_path or "", os.O_RDWR)
    before = charges_of(source)
    try:
        with (
            member_of(agent),
            RamMapping(descriptor, 0, guest.plan.ram_mib * MIB) as mapping,
        ):
            paging.will_need(mapping, runs)
            paging.populate(mapping, runs)
            inside, of_agent = charges_of(source), charges_of(agent)
            paging.page_out(mapping, runs, thorough=True)
            after = charges_of(source)
    finally:
        os.close(descriptor)
    show(
        paged_in_bytes=PAGED_IN_BYTES,
        source_before=before,
        source_with_pages_in=inside,
        source_after=after,
        agent_with_pages_in=of_agent,
    )
    grown = inside.shmem - before.shmem
    assert abs(grown - PAGED_IN_BYTES) <= SLACK_BYTES
    assert of_agent.shmem == 0
    assert abs(after.swap - before.swap) <= SLACK_BYTES


def carry(guest: FreestandingGuest, here: LabCgroup, there: LabCgroup) -> None:
    """Migrate with each agent in its cgroup, and hold every charge against what is resident."""
    assert guest.destination is not None
    source, destination = cgroup_of(guest.source), cgroup_of(guest.destination)
    network = Network(
        source_prefix=tuple(here.command([])), destination_prefix=tuple(there.command([]))
    )
    source_before, before = charges_of(source), guest.source.residency()
    begin = time.monotonic()
    with daemons_for(guest, network=network) as (source_daemon, destination_daemon):
        assert source_daemon.process.pid in here.pids()
        assert destination_daemon.process.pid in there.pids()
        started = time.monotonic()
        result = source_daemon.migrate(GUEST_NAME, destination_daemon)
        assert result.status == 0, (result.reason, source_daemon.log(), destination_daemon.log())
        seconds = time.monotonic() - started
        of_agents = charges_of(here), charges_of(there)
    after = guest.destination.residency()
    found, source_after = charges_of(destination), charges_of(source)
    show(
        limit_bytes=LIMIT_MIB * MIB,
        source_before=source_before,
        source_after=source_after,
        destination=found,
        source_agent=of_agents[0],
        destination_agent=of_agents[1],
        resident_bytes=[before.resident_bytes, after.resident_bytes],
        swapped_bytes=[before.swapped_bytes, after.swapped_bytes],
        downtime_ms=result.final_info.get("downtime"),
        migrate_s=round(seconds, 1),
        with_daemons_s=round(time.monotonic() - begin, 1),
    )
    assert guest.destination.status() == "running"
    # The guest's pages, resident and swapped, are the destination QEMU's and nobody else's.
    assert abs(found.shmem - after.resident_bytes) <= SLACK_BYTES
    assert found.swap >= after.swapped_bytes - SLACK_BYTES
    assert abs(after.swapped_bytes - before.swapped_bytes) <= SLACK_BYTES
    for agent in of_agents:
        assert agent.shmem <= JOURNAL_BYTES
        assert agent.swap == 0
    # It could not have held everything at once, and was never over its limit.
    assert found.peak <= LIMIT_MIB * MIB
    assert source_after.peak <= LIMIT_MIB * MIB
    assert (found.oom_kills, source_after.oom_kills) == (0, 0)
    # What was paged in on the source has gone out again.
    assert abs(source_after.swap - source_before.swap) <= SLACK_BYTES
    verified = guest.verify()
    assert verified.bad == 0, verified


def test_destination_and_page_ins_are_charged_to_the_qemus(
    host_swap: object, newest_qemu: QemuBinary
) -> None:
    assert hierarchy().version == 2
    with agents() as (here, there), settled_pair(small_plan(newest_qemu), COLD_SHARE) as guest:
        for qemu in (guest.source, guest.destination):
            assert qemu is not None
            assert memory_cgroup_of(qemu.pid).path == cgroup_of(qemu).path
        check_page_in_is_charged_to_the_guest(guest, here)
        carry(guest, here, there)


def test_threads_in_cgroups_as_libvirt_has_them(host_swap: object, newest_qemu: QemuBinary) -> None:
    with agents() as (here, there), settled_pair(small_plan(newest_qemu), COLD_SHARE) as guest:
        for qemu in (guest.source, guest.destination):
            assert qemu is not None
            group = cgroup_of(qemu)
            name = scatter_threads(qemu)
            assert name == Path("/", group.path.name, EMULATOR)
            assert (group.path / "cgroup.type").read_text() == "domain threaded\n"
            found = memory_cgroup_of(qemu.pid)
            assert (found.version, found.path) == (2, group.path)
            assert found.limit_bytes() == LIMIT_MIB * MIB
        carry(guest, here, there)
