"""The destination's agent starts the QEMU that the guest comes into, and clears it away again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pageferry.kernel.cgroup import memory_cgroup_named
from pageferry.model.phase import DestinationPhase
from pageferry.testing.faults import (
    BEFORE_WRITE,
    ENABLE_VARIABLE,
    ENABLED,
    FAULTS_VARIABLE,
    journalling,
    reached_path,
)
from pageferry.testing.lab.cgroups import hierarchy
from pageferry.testing.lab.cleanup import lab_name
from pageferry.testing.lab.daemons import LabDaemon, MigrateResult, run_daemon
from pageferry.testing.lab.guests import FreestandingGuest, freestanding_guest
from pageferry.testing.lab.hosts import ram_file
from pageferry.testing.lab.latency import parse_verified
from pageferry.testing.lab.monitor import LabMonitor
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.qemus import qemu_command
from tests.migration.conftest import tiny_plan

pytestmark = [pytest.mark.root, pytest.mark.qemu]

DEADLINE_S = 60.0
GUEST = "guest"


@dataclass(slots=True)
class Site:
    """A guest, and a host that has everything for it but a QEMU that runs."""

    guest: FreestandingGuest
    here: LabDaemon
    folder: Path
    ram: Path
    cgroup: Path
    command: list[str]
    there: LabDaemon
    _stack: contextlib.ExitStack = field(repr=False)

    @property
    def qmp(self) -> Path:
        """Where its monitor listens."""
        return self.folder / "arrived.qmp"

    def migrate(self, *options: str) -> MigrateResult:
        """To the end."""
        return self.here.migrate(GUEST, self.there, *options)

    def start_slowly(self) -> LabMonitor:
        """Begin a migration that takes long; returns the source's control socket."""
        control = LabMonitor(self.here.control_socket)
        slow = {"max-bandwidth": 1 << 20}
        control.execute("migrate", guest=GUEST, uri=self.there.address, parameters=slow)
        return control

    def launched_pid(self) -> int | None:
        """The QEMU that was started; None where there is none."""
        return next(iter(qemus_at(self.qmp)), None)

    def wait_launched(self) -> int:
        """Wait until there is one, in which the guest's RAM arrives."""
        wait_for(lambda: self.launched_pid() is not None, "QEMU to be started")
        pid = self.launched_pid()
        assert pid is not None
        return pid

    def leftovers(self) -> list[str]:
        """What is there of a QEMU that was started."""
        found = [str(each) for each in (self.qmp, self.ram, self.cgroup) if each.exists()]
        return found + [f"process {pid}" for pid in qemus_at(self.qmp)]


def qemus_at(qmp: Path) -> list[int]:
    """Processes whose command line names this monitor."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdecimal():
            with contextlib.suppress(OSError):
                if f"unix:{qmp},".encode() in (each / "cmdline").read_bytes():
                    found.append(int(each.name))
    return found


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def settings_of(qmp: Path, command: list[str], cgroup: str) -> str:
    return "\n".join(
        (
            f"[guests.{GUEST}]",
            f"qmp = {json.dumps(str(qmp))}",
            f"launch = {json.dumps(command)}",
            f"launch-cgroup = {json.dumps(cgroup)}",
        )
    )


@contextlib.contextmanager
def site_of(binary: QemuBinary, change: Callable[[list[str]], list[str]]) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        guest = stack.enter_context(freestanding_guest(tiny_plan(binary)))
        guest.wait_ready()
        ram = stack.enter_context(ram_file("arrived"))
        serial = guest.folder / "arrived.serial"
        guest.serial.attach(serial)
        machine = guest.plan.as_machine()
        # The program's environment is not ours: what an unpacked QEMU needs is in its command.
        environment = [f"{name}={value}" for name, value in binary.environment.items()]
        command = change(
            [
                *(["/usr/bin/env", *environment] if environment else []),
                *qemu_command("arrived", machine, guest.folder, ram, serial, incoming=True),
            ]
        )
        cgroup = lab_name("launched")
        qmp = guest.folder / "arrived.qmp"
        here = stack.enter_context(
            run_daemon("here", guest.folder / "a", {GUEST: guest.source.qmp_path})
        )
        there = stack.enter_context(
            run_daemon(
                "there",
                guest.folder / "b",
                {},
                settings=settings_of(qmp, command, f"/{cgroup}"),
            )
        )
        path = hierarchy().mount / cgroup
        made = Site(guest, here, guest.folder, ram, path, command, there, stack)
        try:
            yield made
        finally:
            for pid in qemus_at(made.qmp):
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not qemus_at(made.qmp), "QEMU to end")
            if path.exists():
                wait_for(lambda: not (path / "cgroup.procs").read_text(), "the cgroup to be empty")
                path.rmdir()


@pytest.fixture
def site(newest_qemu: QemuBinary) -> Iterator[Site]:
    with site_of(newest_qemu, list) as made:
        yield made


def sockets_of(pid: int) -> set[str]:
    links = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.add(os.readlink(each))
    return {link for link in links if link.startswith("socket:")}


def test_guest_arrives_in_a_qemu_that_was_started_for_it(site: Site) -> None:
    control = site.start_slowly()
    pid = site.wait_launched()
    wait_for(lambda: bool(site.there.workers()), "a worker")
    theirs = sockets_of(pid)
    for other in (site.there.process.pid, *site.there.workers()):
        assert not theirs & sockets_of(other), "QEMU has inherited a descriptor"
    assert str(pid) in (site.cgroup / "cgroup.procs").read_text().split()
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"PAGEFERRY" not in environment
    control.execute("migrate-set-parameters", guest=GUEST, max_bandwidth=0)
    wait_for(
        lambda: control.execute("query-migrate")["status"] in ("completed", "failed"), "the end"
    )
    assert control.execute("query-migrate")["status"] == "completed", site.there.log()
    control.close()
    # The daemon may go: the guest is one like any other by now.
    site.there.process.kill()
    site.there.process.wait()
    monitor = LabMonitor(site.folder / "arrived.lab")
    assert monitor.execute("query-status")["status"] == "running"
    monitor.close()
    assert site.launched_pid() == pid
    assert memory_cgroup_named(site.cgroup.name).usage_bytes() > 24 << 20, "charged to its cgroup"
    site.guest.serial.write(1, b"v")
    wait_for(lambda: any(line.startswith("VERIFIED") for line in site.guest.lines), "the guest")
    verified = next(line for line in site.guest.lines if line.startswith("VERIFIED"))
    assert parse_verified(verified, []).bad == 0, verified


def test_cancelled_migration_leaves_nothing_of_it(site: Site) -> None:
    control = site.start_slowly()
    site.wait_launched()
    wait_for(
        lambda: control.execute("query-migrate").get("ram", {}).get("transferred", 0) > 0, "pages"
    )
    control.execute("migrate-cancel", guest=GUEST)
    wait_for(lambda: control.execute("query-migrate")["status"] == "cancelled", "the end")
    control.close()
    wait_for(lambda: not site.leftovers(), f"nothing to be left: {site.leftovers()}")
    assert site.guest.source.status() == "running"
    again = site.migrate()
    assert again.status == 0, again.reason


def test_killed_worker_leaves_nothing_of_it(site: Site) -> None:
    control = site.start_slowly()
    site.wait_launched()
    wait_for(
        lambda: control.execute("query-migrate").get("ram", {}).get("transferred", 0) > 0, "pages"
    )
    for pid in site.there.workers():
        if pid != site.launched_pid():
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: control.execute("query-migrate")["status"] == "failed", "the end")
    control.close()
    wait_for(lambda: not site.leftovers(), f"nothing to be left: {site.leftovers()}")
    assert site.guest.source.status() == "running"


@pytest.mark.parametrize("with_daemon", [False, True])
def test_worker_killed_before_its_first_record_leaves_nothing_of_it(
    site: Site, with_daemon: bool
) -> None:
    """QEMU has been started, and no journal says so yet."""
    held = site.folder / "held"
    held.mkdir()
    point = journalling(BEFORE_WRITE, DestinationPhase.READY)
    site.there.stop()
    site.there.environment = {FAULTS_VARIABLE: f"{point}=wait:{held}", ENABLE_VARIABLE: ENABLED}
    site.there.start()
    control = site.start_slowly()
    wait_for(reached_path(held, point).exists, "the first record")
    pid = site.wait_launched()
    (worker,) = [each for each in site.there.workers() if each != pid]
    if with_daemon:
        site.there.kill()
    os.kill(worker, signal.SIGKILL)
    if with_daemon:
        assert site.leftovers()
        site.there.start()
    wait_for(lambda: control.execute("query-migrate")["status"] == "failed", "the end")
    control.close()
    wait_for(lambda: not site.leftovers(), f"nothing to be left: {site.leftovers()}")
    assert not list(site.there.state_directory.glob("*.launched*"))
    assert site.guest.source.status() == "running"


def broken_option(command: list[str]) -> list[str]:
    return [*command, "-device", "no-such-device"]


def missing_program(command: list[str]) -> list[str]:
    return ["/nonexistent/qemu", *command[1:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (broken_option, "no-such-device"),
        (missing_program, "/nonexistent/qemu: No such file or directory"),
    ],
)
def test_qemu_that_does_not_start_is_told_of(
    newest_qemu: QemuBinary, change: Callable[[list[str]], list[str]], said: str
) -> None:
    with site_of(newest_qemu, change) as site:
        result = site.migrate()
        assert result.status == 3, result.errors
        assert "could not be started" in result.reason, site.there.log()
        assert said in result.reason
        assert "launch in [guests.guest]" in result.error["advice"]
        assert not site.leftovers()
        assert site.guest.source.status() == "running"


def test_another_machine_is_refused_and_its_qemu_ended(newest_qemu: QemuBinary) -> None:
    def smaller(command: list[str]) -> list[str]:
        return [word.replace("size=64M", "size=32M").replace("64M", "32M") for word in command]

    with site_of(newest_qemu, smaller) as site:
        result = site.migrate()
        assert result.status == 3, result.errors
        assert not site.leftovers()


def test_qemu_that_waits_already_is_taken_and_left(site: Site) -> None:
    (site.folder / "arrived.serial").unlink()
    destination = site.guest.start_destination(name="arrived")
    control = site.start_slowly()
    wait_for(
        lambda: control.execute("query-migrate").get("ram", {}).get("transferred", 0) > 0, "pages"
    )
    control.execute("migrate-cancel", guest=GUEST)
    wait_for(lambda: control.execute("query-migrate")["status"] == "cancelled", "the end")
    control.close()
    assert destination.status() == "inmigrate"
    assert not site.cgroup.exists()
