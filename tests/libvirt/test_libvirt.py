"""What docs/libvirt.md says of guests that libvirt manages, seen with a real libvirtd."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pageferry.control.sync_client import connect
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.daemons import LabDaemon, run_daemon_pair
from pageferry.testing.lab.hosts import is_root, scratch_folder
from pageferry.testing.lab.latency import parse_verified
from pageferry.testing.lab.libvirtd import LabLibvirtd, run_libvirtd
from pageferry.testing.lab.packages import PackageError, libvirt, qemu_7
from pageferry.testing.lab.serial import SerialPort
from tests.libvirt.domains import DOMAIN, domain_xml
from tests.support import need

pytestmark = [pytest.mark.root, pytest.mark.qemu, pytest.mark.slow]

DEADLINE_S = 90.0


@dataclass(slots=True)
class Site:
    """Two hosts with libvirt and pageferry each, and a domain that runs on the first."""

    folder: Path
    here: LabLibvirtd
    there: LabLibvirtd
    source: LabDaemon
    destination: LabDaemon
    serial: SerialPort
    lines: list[str] = field(default_factory=list)

    def xml(self, where: str, *, incoming: bool = False, memory: str = "file") -> str:
        """The domain for one of the hosts, "a" or "b"."""
        qmp, serial = self.folder / f"{where}.qmp", self.folder / f"{where}.serial"
        return domain_xml(qmp, serial, incoming=incoming, memory=memory)

    def start(self, memory: str = "file") -> None:
        """Start the domain, and wait until its guest has filled its memory."""
        self.serial.attach(self.folder / "a.serial")
        self.here.define(self.xml("a", memory=memory))
        self.here.virsh("start", DOMAIN)
        self.wait_line("READY")

    def start_waiting(self, memory: str = "file") -> None:
        """Start the domain of the other host, which waits for the guest."""
        self.serial.attach(self.folder / "b.serial")
        self.there.define(self.xml("b", incoming=True, memory=memory))
        self.there.virsh("start", DOMAIN, "--paused")

    def wait_line(self, start: str) -> str:
        """Wait for the guest to say a line that begins so."""
        wait_for(lambda: any(line.startswith(start) for line in self.lines), f"the guest: {start}")
        return next(line for line in self.lines if line.startswith(start))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture
def site() -> Iterator[Site]:
    need(is_root(), "libvirtd in system mode needs root")
    try:
        libvirt()
        need(qemu_7().path == Path("/usr/bin/qemu-system-x86_64"), "QEMU 7.2 is not installed")
    except PackageError as error:
        need(False, str(error))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        lines: list[str] = []
        serial = SerialPort(lambda _time_s, line: lines.append(line))
        stack.callback(serial.close)
        try:
            here = stack.enter_context(run_libvirtd("a", folder / "la"))
            there = stack.enter_context(run_libvirtd("b", folder / "lb"))
        except LabError as error:
            if "mount" in str(error) or "unshare" in str(error):
                need(False, str(error))
            raise
        source, destination = stack.enter_context(
            run_daemon_pair(folder, {DOMAIN: folder / "a.qmp"}, {DOMAIN: folder / "b.qmp"})
        )
        yield Site(folder, here, there, source, destination, serial, lines)


def test_guest_is_looked_at_while_libvirt_runs_it(site: Site) -> None:
    site.start()
    with connect(site.source.control_socket) as client:
        found = client.residency(DOMAIN)
        assert [block.name for block in found.blocks] == ["pc.ram"]
        assert found.resident_bytes + found.swapped_bytes > 24 << 20
        assert client.estimate(DOMAIN, sample_s=0.3).transfer_bytes > 24 << 20
        checks = {check.name: check for check in client.doctor(guest=DOMAIN)}
    assert checks["configuration"].verdict == "ok", checks["configuration"].found
    assert checks["ram"].verdict == "ok"
    assert site.here.state(DOMAIN) == "running (booted)"


@pytest.mark.parametrize("memory", ["file", "memfd"])
def test_guest_is_carried_from_libvirt_to_libvirt(site: Site, memory: str) -> None:
    site.start(memory)
    site.start_waiting(memory)
    assert site.there.state(DOMAIN) == "paused (user)"
    result = site.source.migrate(DOMAIN, site.destination)
    assert result.status == 0, result.reason
    # What libvirt makes of it, on either host.
    wait_for(lambda: site.there.state(DOMAIN).startswith("running"), "libvirt to hear of it there")
    assert site.there.state(DOMAIN) == "running (unpaused)"
    assert site.here.state(DOMAIN) == "paused (unknown)"
    status = json.loads(
        site.here.virsh("qemu-monitor-command", DOMAIN, '{"execute": "query-status"}')
    )
    assert status["return"]["status"] == "postmigrate"
    site.serial.write(1, b"v")
    verified = site.wait_line("VERIFIED")
    assert parse_verified(verified, []).bad == 0, verified
    # It is managed there as any domain: paused, resumed, its configuration made an ordinary one.
    site.there.virsh("suspend", DOMAIN)
    assert site.there.state(DOMAIN) == "paused (user)"
    site.there.virsh("resume", DOMAIN)
    assert site.there.state(DOMAIN) == "running (unpaused)"
    site.there.define(site.xml("b", memory=memory))
    assert "defer" not in site.there.virsh("dumpxml", DOMAIN, "--inactive")
    assert site.there.state(DOMAIN) == "running (unpaused)"
    # What is left here cannot be saved, but nothing else keeps it from being resumed.
    with pytest.raises(LabError, match="paused due to previous migration"):
        site.here.virsh("managedsave", DOMAIN)
    site.here.virsh("destroy", DOMAIN)
    site.here.virsh("undefine", DOMAIN)
    assert not list(site.here.ram_folder.rglob("pc.ram"))


def test_cancelled_migration_is_no_event_to_libvirt(site: Site) -> None:
    site.start()
    site.start_waiting()
    with connect(site.source.control_socket) as client:
        slow = {"max-bandwidth": 1 << 20}
        migration_id = client.migrate(DOMAIN, site.destination.address, parameters=slow)
        wait_for(
            lambda: client.query_migrate(migration_id=migration_id).transferred_bytes > 0, "pages"
        )
        assert "None" in site.here.virsh("domjobinfo", DOMAIN), (
            "a job that libvirt knows nothing of"
        )
        client.cancel(migration_id=migration_id)
        assert client.wait(migration_id).status == "cancelled"
    assert site.here.state(DOMAIN) == "running (booted)"
    assert site.there.state(DOMAIN) == "paused (user)"
    # The domain that waits takes the next one.
    result = site.source.migrate(DOMAIN, site.destination)
    assert result.status == 0, result.reason
