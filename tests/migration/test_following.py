"""The destination's QEMU is started by the source's command line, as far as that is allowed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pageferry.testing.lab.daemons import LabDaemon, run_daemon
from pageferry.testing.lab.guest import freestanding_image
from pageferry.testing.lab.guests import FreestandingGuest, freestanding_guest
from pageferry.testing.lab.hosts import scratch_folder
from pageferry.testing.lab.latency import parse_verified
from pageferry.testing.lab.monitor import LabMonitor
from pageferry.testing.lab.packages import PackageError, qemu_7
from tests.migration.conftest import tiny_plan
from tests.support import need
from tests.support.pki import Pki

pytestmark = [pytest.mark.root, pytest.mark.qemu]

GUEST = "guest"
PROGRAM = "/usr/bin/qemu-system-x86_64"
SOURCE = "host-a.example"
DEADLINE_S = 60.0

# The other host: the same paths, with other things behind them.
OTHER_HOST = """
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs "$0"
touch "$0/source.serial"
mount --bind "$1" "$0/source.serial"
shift
exec "$@"
"""


@dataclass(slots=True)
class Site:
    """A guest with its host's daemon, and a daemon whose host has neither."""

    guest: FreestandingGuest
    here: LabDaemon
    there: LabDaemon

    def seen_there(self, path: Path) -> Path:
        """A path of the other host's, from here."""
        return Path(f"/proc/{self.there.process.pid}/root{path}")

    def qemus_there(self) -> list[int]:
        """QEMUs of the other host."""
        space = os.readlink(f"/proc/{self.there.process.pid}/ns/mnt")
        found = []
        for each in Path("/proc").iterdir():
            if each.name.isdecimal():
                with contextlib.suppress(OSError):
                    if os.readlink(each / "ns/mnt") == space:
                        program = (each / "cmdline").read_bytes().split(b"\0")[0]
                        found += [int(each.name)] if program == PROGRAM.encode() else []
        return found


@contextlib.contextmanager
def site_of(folder: Path, peers: Sequence[str], leave_out: str = "") -> Iterator[Site]:
    try:
        binary = qemu_7()
    except PackageError as error:
        need(False, str(error))
        raise
    need(str(binary.path) == PROGRAM, f"QEMU 7.2 is not at {PROGRAM}")
    pki = Pki.make(folder / "pki")
    with contextlib.ExitStack() as stack:
        guest = stack.enter_context(freestanding_guest(tiny_plan(binary)))
        guest.wait_ready()
        other = stack.enter_context(scratch_folder())
        guest.serial.attach(other / "serial")
        assert guest.source.ram_path is not None
        paths = {
            "qmp": str(guest.source.qmp_path),
            "lab": str(guest.folder / "source.lab"),
            "serial": str(guest.folder / "source.*"),
            "ram": f"/dev/shm/{guest.source.ram_path.name}",
            "kernel": str(freestanding_image()),
        }
        allowed = [path for name, path in paths.items() if name != leave_out]

        def tls(host: str) -> str:
            return f"[tls]\ndirectory = {json.dumps(str(pki.host(host)))}\nloopback = true\n"

        following = (
            "[launch-from-source]\n"
            f"program = {json.dumps(PROGRAM)}\npeers = {json.dumps(list(peers))}\n"
            f'paths = {json.dumps(allowed)}\nuser = "root"\n'
        )
        qmp = guest.source.qmp_path
        here = stack.enter_context(
            run_daemon("here", guest.folder / "a", {GUEST: qmp}, settings=tls(SOURCE))
        )
        there = stack.enter_context(
            run_daemon(
                "there",
                other / "b",
                {GUEST: qmp},
                settings=tls("host-b.example") + following,
                prefix=(
                    *("unshare", "--mount", "--propagation=private", "sh", "-e", "-c", OTHER_HOST),
                    *(str(guest.folder), str(other / "serial")),
                ),
            )
        )
        made = Site(guest, here, there)
        try:
            yield made
        finally:
            left = made.qemus_there()
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            wait_until_gone(left)


def wait_until_gone(pids: Sequence[int]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while any(Path(f"/proc/{pid}/maps").exists() and _lives(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def test_guest_arrives_in_a_qemu_like_its_own(tmp_path: Path) -> None:
    with site_of(tmp_path, [SOURCE]) as site:
        result = site.here.migrate(GUEST, site.there)
        assert result.status == 0, f"{result.reason}\n{site.there.log()}"
        (pid,) = site.qemus_there()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert b"spawn=deny" in words[words.index(b"-sandbox") + 1]
        monitor = LabMonitor(site.seen_there(site.guest.folder / "source.lab"))
        assert monitor.execute("query-status")["status"] == "running"
        monitor.close()
        site.guest.serial.write(1, b"v")
        deadline = time.monotonic() + DEADLINE_S
        while not (said := [x for x in site.guest.lines if x.startswith("VERIFIED")]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert parse_verified(said[0], []).bad == 0, said


def test_what_this_host_has_no_pattern_for_is_not_followed(tmp_path: Path) -> None:
    with site_of(tmp_path, [SOURCE], leave_out="kernel") as site:
        result = site.here.migrate(GUEST, site.there)
        assert result.status == 3, result.reason
        assert "fits no pattern" in result.reason
        assert str(freestanding_image()) in result.reason
        assert "[launch-from-source]" in result.error["advice"]
        assert not site.qemus_there()
        assert site.guest.source.status() == "running"


def test_command_line_of_another_peer_is_not_asked_for(tmp_path: Path) -> None:
    with site_of(tmp_path, ["host-c.example"]) as site:
        result = site.here.migrate(GUEST, site.there)
        assert result.status == 3, result.reason
        assert not site.qemus_there()
