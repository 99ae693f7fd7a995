"""A destination's QEMU that would let the guest run by itself is kept from it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from pageferry.testing.lab.carrying import GUEST_NAME
from pageferry.testing.lab.daemons import LabDaemon, run_daemon
from pageferry.testing.lab.guests import FreestandingGuest, freestanding_guest
from pageferry.testing.lab.monitor import LabMonitor
from pageferry.testing.lab.packages import QemuBinary
from tests.migration.conftest import assert_verified, tiny_plan

pytestmark = [pytest.mark.root, pytest.mark.qemu]

DEADLINE_S = 60.0


@pytest.fixture
def guest(qemu_binary: QemuBinary) -> Iterator[FreestandingGuest]:
    with freestanding_guest(tiny_plan(qemu_binary)) as started:
        started.wait_ready()
        started.start_destination()
        yield started


@contextlib.contextmanager
def daemons(guest: FreestandingGuest) -> Iterator[tuple[LabDaemon, LabDaemon]]:
    """The destination's workers stop themselves once QEMU has loaded its devices."""
    assert guest.destination is not None
    faults = {
        "PAGEFERRY_FAULTS": "in-destination-loaded=stop",
        "PAGEFERRY_ENABLE_FAULTS": "guests-may-be-lost",
    }
    with (
        run_daemon("here", guest.folder / "a", {GUEST_NAME: guest.source.qmp_path}) as here,
        run_daemon(
            "there",
            guest.folder / "b",
            {GUEST_NAME: guest.destination.qmp_path},
            environment=faults,
        ) as there,
    ):
        yield here, there


def is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


def test_cont_to_a_waiting_qemu_does_not_start_the_guest_before_the_commit(
    guest: FreestandingGuest,
) -> None:
    destination = guest.destination
    assert destination is not None
    destination.monitor.execute("cont")  # as virsh resume does
    assert destination.status() == "inmigrate"
    with daemons(guest) as (here, there):
        control = LabMonitor(here.control_socket)
        control.execute("migrate", guest=GUEST_NAME, uri=there.address)
        deadline = time.monotonic() + DEADLINE_S
        while not (stopped := [pid for pid in there.workers() if is_stopped(pid)]):
            assert time.monotonic() < deadline, there.log()
            time.sleep(0.02)
        assert destination.status() == "paused", "it has loaded, and the source has not committed"
        assert guest.source.status() == "postmigrate"
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        while control.execute("query-migrate")["status"] != "completed":
            assert time.monotonic() < deadline, control.execute("query-migrate")
            time.sleep(0.02)
        control.close()
        assert destination.status() == "running"
    assert_verified(guest)
