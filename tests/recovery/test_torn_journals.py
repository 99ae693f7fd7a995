"""Daemons killed while they write a journal, and disks that refuse. Real processes and files."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pageferry.migration.journal import _sealed
from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.testing.faults import JOURNAL_STAGES, in_phase, journalling
from tests.recovery.bench import (
    ID,
    Daemon,
    daemon,
    eventually,
    phase_in,
    qemu,
    write_journal,
)
from tests.support import need

RECORDED = "recorded"

POINTS = (*JOURNAL_STAGES, RECORDED)
"""Where in a write the process is killed: in order, see Journal._append."""


def fault_at(point: str, phase: SourcePhase | DestinationPhase) -> str:
    return in_phase(phase) if point == RECORDED else journalling(point, phase)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path / "a") as made:
        made.folder.mkdir()
        yield made


@pytest.fixture(autouse=True)
def _needs_qemu() -> None:
    need(shutil.which("qemu-system-x86_64") is not None, "needs qemu-system-x86_64")


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_it_journals_that_the_guest_never_runs_here(host: Daemon, point: str) -> None:
    with qemu(host.folder / "qmp") as its_qemu:
        path = write_journal(host.state_dir, "destination", DestinationPhase.LOADED, its_qemu)
        host.start(faults=f"{fault_at(point, DestinationPhase.ABORTED)}=kill")
        assert host.process is not None
        assert host.process.wait(30) == -signal.SIGKILL
        assert its_qemu.process.wait(20) == 0, "QEMU ended first"
        assert phase_in(path) == ("loaded" if point in POINTS[:2] else "aborted")
        host.end()
        host.start()
        eventually(lambda: phase_in(path) == "aborted", "the next daemon settles it")
        assert path.read_bytes().count(b"\n") == 5, "nothing torn is left in the journal"


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_it_journals_that_the_guest_runs(host: Daemon, point: str) -> None:
    with qemu(host.folder / "qmp") as its_qemu:
        path = write_journal(host.state_dir, "destination", DestinationPhase.COMMITTED, its_qemu)
        host.start(faults=f"{fault_at(point, DestinationPhase.RUNNING)}=kill")
        assert host.process is not None
        assert host.process.wait(30) == -signal.SIGKILL
        assert its_qemu.status == "running", "committed is enough to run it"
        host.end()
        host.start()
        eventually(lambda: phase_in(path) == "running", "the next daemon settles it")
        assert its_qemu.status == "running"


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_it_journals_that_the_guest_is_kept(host: Daemon, point: str) -> None:
    with qemu(host.folder / "qmp") as its_qemu:
        its_qemu.ask("cont")
        its_qemu.migrate_away(pause_before_switchover=True)
        path = write_journal(host.state_dir, "source", SourcePhase.SWITCHOVER, its_qemu)
        host.start(faults=f"{fault_at(point, SourcePhase.FAILED)}=kill")
        assert host.process is not None
        assert host.process.wait(30) == -signal.SIGKILL
        assert its_qemu.status == "running"
        host.end()
        host.start()
        eventually(lambda: phase_in(path) == "failed", "the next daemon settles it")
        assert its_qemu.status == "running"


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("point", POINTS[:3])
def test_a_disk_that_refuses_leaves_the_journal_whole_and_open(
    host: Daemon, point: str, error: str
) -> None:
    with qemu(host.folder / "qmp") as its_qemu:
        path = write_journal(host.state_dir, "destination", DestinationPhase.LOADED, its_qemu)
        before = path.read_bytes()
        host.start(faults=f"{fault_at(point, DestinationPhase.ABORTED)}={error}")
        eventually(lambda: "cannot be settled yet" in host.log(), "it was tried")
        assert path.read_bytes() == before
        host.end()
        host.start()
        eventually(lambda: phase_in(path) == "aborted", "settled once the disk is well again")


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[None]:
    path.mkdir()
    options = f"size={size_bytes},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    """Write until the disk has no room any more."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - the loop has no other end


@pytest.mark.root
def test_a_full_disk_is_waited_for(host: Daemon) -> None:
    """The disk is really full, in the middle of the record: half a line fits on it."""
    with small_disk(host.state_dir, 64 << 10), qemu(host.folder / "qmp") as its_qemu:
        filler = "x" * 3300
        phase = DestinationPhase.LOADED
        path = write_journal(host.state_dir, "destination", phase, its_qemu, filler=filler)
        length = path.stat().st_size
        (host.state_dir / "lock").touch()
        to_page = -length % 4096
        assert 0 < to_page < 300, "the next record crosses into a page that is not there"
        fill(host.state_dir / "ballast")
        host.start()
        eventually(lambda: "cannot be settled yet" in host.log(), "it was tried")
        assert "No space left on device" in host.log()
        assert path.stat().st_size == length
        assert phase_in(path) == "loaded"
        assert its_qemu.process.wait(20) == 0
        (host.state_dir / "ballast").unlink()
        eventually(lambda: phase_in(path) == "aborted", "settled once there is room")
        host.end()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("damaged", b'{"migration-id":"aaaaaaaa","role":"source"}\n'),
        ("noise", b"\x00\xff\n" * 40),
        ("long", b"x" * (2 << 20)),
    ],
)
def test_a_journal_that_makes_no_sense_is_told_and_harms_no_other(
    host: Daemon, name: str, content: bytes
) -> None:
    with qemu(host.folder / "qmp") as its_qemu:
        good = write_journal(host.state_dir, "destination", DestinationPhase.LOADED, its_qemu)
        bad = host.state_dir / "aaaaaaaa.source.journal"
        bad.write_bytes(content)
        host.start()
        eventually(lambda: phase_in(good) == "aborted", "the good one is settled")
        (told,) = host.recovered()
        assert (told["migration-id"], told["phase"]) == ("aaaaaaaa", "unreadable")
        assert "left alone" in told["message"]
        assert bad.read_bytes() == content
        assert host.recover().returncode == 5
        assert host.recovered(ID)[0]["settled"]


def test_a_phase_of_a_newer_version_is_left_to_it(host: Daemon) -> None:
    with qemu(host.folder / "qmp") as its_qemu:
        path = write_journal(host.state_dir, "destination", DestinationPhase.LOADED, its_qemu)
        record = {
            "migration-id": ID,
            "role": "destination",
            "phase": "teleporting",
            "time-ns": 1,
            "notes": {},
        }
        path.write_bytes(path.read_bytes() + _sealed(record))
        host.start()
        host.wait_ready()
        (told,) = host.recovered(ID)
        assert "'teleporting' is not known to this version" in told["message"]
        assert not its_qemu.is_gone()
