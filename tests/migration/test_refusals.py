"""What cannot be carried is refused before anything is touched, and the message says what to do."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pageferry.kernel import procfs
from pageferry.kernel.residency import probe_readers
from pageferry.kernel.tracking import AddressRange, WriteTracker
from pageferry.testing.lab.carrying import GUEST_NAME
from pageferry.testing.lab.daemons import LabDaemon, MigrateResult, run_daemon
from pageferry.testing.lab.guests import with_ram
from pageferry.testing.lab.packages import QemuBinary
from tests.conftest import generation
from tests.migration.conftest import MakePair, assert_verified, tiny_plan
from tests.migration.pairs import Pair, traces_in
from tests.support import need

pytestmark = [pytest.mark.root, pytest.mark.qemu]

REFUSED = 3
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")


@contextlib.contextmanager
def untouched(pair: Pair) -> Iterator[None]:
    """Nothing of the guest changes within the block, and it runs on at the source."""
    found = traces_in(pair.source)
    residency = pair.source.residency()
    yield
    assert traces_in(pair.source) == found
    assert pair.source.residency().hole_bytes == residency.hole_bytes
    assert pair.destination.status() == "inmigrate"
    assert_verified(pair.guest)


def assert_refused(result: MigrateResult, *, naming: str, advising: str) -> None:
    assert result.status == REFUSED, result
    error = result.error
    message = str(error.get("message") or result.errors)
    assert naming in message, message
    assert advising in str(error.get("advice") or result.errors), error
    if error:
        assert error["guest-state"] in ("untouched", "on the source, as before"), error


@pytest.mark.parametrize("backend", ["private", "memfd-private"])
def test_private_memory(backend: str, make_pair: MakePair) -> None:
    pair = make_pair(tiny_plan(generation("qemu-7.2"), backend=backend))
    status = pair.source.status()
    result = pair.migrate()
    assert_refused(result, naming="ram0", advising="share=on")
    assert pair.source.status() == status
    assert_verified(pair.guest)


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Enough pages of 2 MiB for two tiny guests, given back afterwards."""
    before = HUGE_PAGES.read_text()
    HUGE_PAGES.write_text("80")
    try:
        need(int(HUGE_PAGES.read_text()) >= 80, "the host has no room for 80 huge pages")
        yield
    finally:
        HUGE_PAGES.write_text(before)


def test_hugetlb_memory(huge_pages: None, make_pair: MakePair) -> None:
    pair = make_pair(tiny_plan(generation("qemu-7.2"), backend="memfd-hugetlb"))
    result = pair.migrate()
    assert_refused(result, naming="hugetlb", advising="QEMU's own migration")
    assert_verified(pair.guest)


MAPPER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 4096)
os.close(fd)
print("mapped", flush=True)
sys.stdin.read()
"""


def test_another_process_that_maps_the_memory(tiny_pair: Pair) -> None:
    path = tiny_pair.source.ram_path
    assert path is not None
    process = subprocess.Popen(
        [sys.executable, "-c", MAPPER, os.fspath(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mapped\n"
        with untouched(tiny_pair):
            result = tiny_pair.migrate()
            assert_refused(result, naming=f"pid {process.pid}", advising="stop that process")
    finally:
        process.kill()
        process.communicate()
    assert tiny_pair.migrate().status == 0


def test_a_userfaultfd_that_is_there_already(tiny_pair: Pair) -> None:
    path = tiny_pair.source.ram_path
    assert path is not None
    status = path.stat()
    entries = procfs.ranges_of_file(tiny_pair.source.pid, status.st_dev, status.st_ino)
    ranges = [AddressRange(entry.start, entry.end) for entry in entries]
    tracker = WriteTracker.arm(tiny_pair.source.pid, ranges)
    try:
        with untouched(tiny_pair):
            result = tiny_pair.migrate()
            assert_refused(result, naming="userfaultfd", advising="let that end")
    finally:
        tracker.close()
    assert tiny_pair.migrate().status == 0


def test_a_destination_with_other_memory(make_pair: MakePair, newest_qemu: QemuBinary) -> None:
    pair = make_pair(tiny_plan(newest_qemu), change=with_ram(96))
    with untouched(pair):
        assert_refused(pair.migrate(), naming="ram0", advising="same")


def test_a_destination_with_another_machine(make_pair: MakePair, newest_qemu: QemuBinary) -> None:
    pair = make_pair(tiny_plan(newest_qemu), change=lambda machine: replace(machine, machine="pc"))
    with untouched(pair):
        assert_refused(pair.migrate(), naming="machine", advising="-machine pc-q35")


def test_states_that_cannot_migrate(tiny_pair: Pair) -> None:
    assert tiny_pair.migrate().status == 0
    again = tiny_pair.migrate()
    assert_refused(again, naming="postmigrate", advising="migrated away already")
    # Back to a QEMU that does not wait for a guest.
    back = tiny_pair.there.migrate(GUEST_NAME, tiny_pair.here)
    assert_refused(back, naming="not waiting for a guest", advising="-incoming defer -S")
    assert_verified(tiny_pair.guest)


def test_a_guest_that_the_destination_does_not_know(tiny_pair: Pair) -> None:
    with untouched(tiny_pair):
        result = tiny_pair.migrate("--destination-guest", "stranger")
        assert_refused(result, naming="stranger", advising="guests")


def test_an_agent_that_is_not_there(tiny_pair: Pair) -> None:
    tiny_pair.there.stop()
    with untouched(tiny_pair):
        result = tiny_pair.migrate()
        assert_refused(result, naming="cannot be reached", advising="pageferryd")


def test_a_monitor_that_someone_else_uses(tiny_pair: Pair) -> None:
    """QEMU lets a second client of a QMP socket wait for good."""
    with untouched(tiny_pair), socket.socket(socket.AF_UNIX) as other:
        other.connect(os.fspath(tiny_pair.source.qmp_path))
        assert other.recv(4096)
        result = tiny_pair.migrate()
        assert result.status != 0
        assert "another client" in result.error["message"]
        assert "QMP socket of its own" in result.error["advice"]


def test_a_destination_whose_qemu_is_not_there(tiny_pair: Pair) -> None:
    tiny_pair.destination.stop()
    result = tiny_pair.migrate()
    assert_refused(result, naming="refuses: ", advising="check that QEMU runs with -qmp")
    assert os.fspath(tiny_pair.destination.qmp_path) in result.error["message"]
    assert_verified(tiny_pair.guest)


def test_a_monitor_of_the_destination_that_someone_else_uses(tiny_pair: Pair) -> None:
    with untouched(tiny_pair), socket.socket(socket.AF_UNIX) as other:
        other.connect(os.fspath(tiny_pair.destination.qmp_path))
        assert other.recv(4096)
        assert_refused(tiny_pair.migrate(), naming="another client", advising="of its own")


@contextlib.contextmanager
def daemon_without(capabilities: str, pair: Pair) -> Iterator[LabDaemon]:
    """A daemon of the source that lacks these capabilities."""
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin")
    need(setpriv is not None, "setpriv is missing: install util-linux")
    assert setpriv is not None
    prefix = (setpriv, "--bounding-set", capabilities, "--inh-caps", capabilities)
    guests = {GUEST_NAME: pair.source.qmp_path}
    with run_daemon("weak", pair.guest.folder / "weak", guests, prefix=prefix) as weak:
        yield weak


@pytest.mark.parametrize("capabilities", ["-sys_ptrace", "-sys_ptrace,-sys_admin"])
def test_a_missing_privilege(capabilities: str, tiny_pair: Pair) -> None:
    with daemon_without(capabilities, tiny_pair) as weak, untouched(tiny_pair):
        result = weak.migrate(GUEST_NAME, tiny_pair.there)
        assert_refused(result, naming="", advising="CAP_SYS_PTRACE")


def test_a_residency_way_that_the_kernel_lacks(tiny_pair: Pair) -> None:
    if any(found.name == "pagemap" and found.supported for found in probe_readers()):
        return  # a patched kernel: nothing to refuse
    with untouched(tiny_pair):
        tiny_pair.start(**{"residency-way": "pagemap"})
        info = tiny_pair.wait_end()
        assert info["status"] == "failed"
        assert "pagemap" in info["error"]["message"]
        assert info["error"]["advice"]
