"""Starting the destination's QEMU, with programs in its place."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from pathlib import Path

import pytest

from pageferry.kernel.identity import process_identity
from pageferry.migration.launched import LaunchedQemu
from pageferry.migration.launching import Launching, waiting_qemu
from pageferry.model.errors import RefusedError
from pageferry.model.launch import Launch
from pageferry.testing.lab.hosts import is_root
from tests.support import need

ID = "0123456789abcdef"

GREETER = """
import socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
peers = []
while True:
    peer, _ = server.accept()
    peer.send(b'{"return": {}}')
    peers.append(peer)
"""


def shell(script: str, **values: object) -> Launch:
    return Launch(("/bin/sh", "-c", script), **values)  # type: ignore[arg-type]


def greeter(qmp: Path, ram: Path) -> Launch:
    backend = f"memory-backend-file,id=m,size=1M,mem-path={ram}"
    return Launch(
        (sys.executable, "-c", f"open({str(ram)!r}, 'w')\n{GREETER}", str(qmp), "-object", backend)
    )


async def test_failure_to_start_quotes_what_was_said(tmp_path: Path) -> None:
    launch = shell("echo it cannot be >&2; exit 3")
    with pytest.raises(RefusedError, match="exit status 3; it said: it cannot be"):
        async with waiting_qemu(launch, str(tmp_path / "qmp"), "web1", tmp_path, ID):
            pass
    assert (tmp_path / "qemu" / "web1.log").read_text() == "it cannot be\n"


async def test_its_user_and_groups_are_the_configured_ones(tmp_path: Path) -> None:
    need(is_root(), "changing users needs root")
    user = pwd.getpwnam("nobody")
    launch = shell("id -u; id -G; exit 1", uid=user.pw_uid, gid=user.pw_gid, groups=(user.pw_gid,))
    with pytest.raises(RefusedError, match=f"it said: {user.pw_uid}\n{user.pw_gid} "):
        async with waiting_qemu(launch, str(tmp_path / "qmp"), "web1", tmp_path, ID):
            pass


async def test_it_gets_none_of_our_descriptors_or_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEFERRY_MIGRATION_ID", "x")
    with socket.socket() as ours:
        os.set_inheritable(ours.fileno(), True)
        launch = shell("ls /proc/$$/fd | tr '\\n' ' '; env | grep -c PAGEFERRY; exit 1")
        with pytest.raises(RefusedError) as caught:
            async with waiting_qemu(launch, str(tmp_path / "qmp"), "web1", tmp_path, ID):
                pass
    said = caught.value.message.split("it said: ")[1].split(" (all")[0].split()
    assert said[-1] == "0"
    assert set(said[:-1]) <= {"0", "1", "2", "10", "255"}, "and what a shell opens for itself"
    assert str(ours.fileno()) not in said


class GivenUpError(Exception):
    pass


async def test_it_ends_with_the_error_that_comes_before_the_commit(tmp_path: Path) -> None:
    qmp, ram = tmp_path / "qmp", tmp_path / "ram"
    found: list[LaunchedQemu | None] = []

    async def give_up() -> None:
        async with waiting_qemu(greeter(qmp, ram), str(qmp), "web1", tmp_path, ID) as launching:
            found.append(launching.launched)
            assert launching.launched is not None
            assert launching.launched.identity.is_alive
            raise GivenUpError

    with pytest.raises(GivenUpError):
        await give_up()
    (launched,) = found
    assert launched is not None
    assert launched.files == (str(ram),)
    assert LaunchedQemu.from_notes(launched.as_notes()) == launched
    assert not launched.identity.is_alive
    assert not qmp.exists()
    assert not ram.exists()
    assert await launched.end(), "may be done again"


async def test_it_stays_once_the_guest_may_run_in_it(tmp_path: Path) -> None:
    qmp, ram = tmp_path / "qmp", tmp_path / "ram"
    ram.touch()
    found: list[Launching] = []

    async def commit() -> None:
        async with waiting_qemu(greeter(qmp, ram), str(qmp), "web1", tmp_path, ID) as launching:
            found.append(launching)
            launching.keep()
            raise GivenUpError

    with pytest.raises(GivenUpError):
        await commit()
    launched = found[0].launched
    assert launched is not None
    assert launched.identity.is_alive
    # And one that waits already is nobody's to start or to end.
    async with waiting_qemu(shell("exit 1"), str(qmp), "web1", tmp_path, ID) as other:
        assert other.launched is None
    assert await launched.end()
    assert ram.exists(), "it was there before"
    found[0].reap()


async def test_another_process_of_that_number_is_not_ended(tmp_path: Path) -> None:
    identity = process_identity(os.getpid())
    assert identity is not None
    stranger = LaunchedQemu.from_notes(
        {
            "process": {**identity.as_dict(), "start-ticks": identity.start_ticks - 1},
            "qmp": str(tmp_path / "qmp"),
            "files": [],
            "cgroup": "",
        }
    )
    assert await stranger.end()
