"""QEMUs in services of systemd's: names and commands, and systemd with programs in its place."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from pageferry.daemon.launches import in_service
from pageferry.daemon.systemd import ServiceManager
from pageferry.kernel.identity import process_identity
from pageferry.migration import service
from pageferry.migration.answering import listens
from pageferry.migration.journal import unrecorded_path
from pageferry.migration.launched import AskedQemu, LaunchedQemu, end_unrecorded
from pageferry.migration.launching import waiting_qemu
from pageferry.model.errors import RefusedError
from pageferry.model.launch import Launch
from pageferry.policy import guest_service
from pageferry.policy.guest_service import (
    ServiceNameError,
    description_of,
    place_of,
    service_command,
    service_of,
)

COMMAND = ("/usr/bin/qemu-system-x86_64", "-name", "a$HOME%n", "-S")


@pytest.mark.parametrize(
    ("guest", "service_name"),
    [
        ("web1", "pageferry-guest-web1.service"),
        ("web-1.example", "pageferry-guest-web-1.example.service"),
        ("a/b@c \\d", "pageferry-guest-a\\x2fb\\x40c\\x20\\x5cd.service"),
        ("ü", "pageferry-guest-\\xc3\\xbc.service"),
    ],
)
def test_a_guest_names_its_service(guest: str, service_name: str) -> None:
    assert service_of(guest) == service_name


@pytest.mark.parametrize(
    ("cgroup", "slice_name", "service_name"),
    [
        ("", "machine.slice", "pageferry-guest-web1.service"),
        ("/machine.slice/web", "machine.slice", "pageferry-guest-web.service"),
        ("/a.slice/a-b.slice/web", "a-b.slice", "pageferry-guest-web.service"),
    ],
)
def test_the_configured_cgroup_says_where(cgroup: str, slice_name: str, service_name: str) -> None:
    assert place_of(Launch(COMMAND, cgroup=cgroup), "web1") == (slice_name, service_name)


@pytest.mark.parametrize("cgroup", ["/web", "/guests/web", "/a-b.slice/web", "/a.slice/b/web"])
def test_a_cgroup_outside_of_slices_is_none_of_systemds(cgroup: str) -> None:
    with pytest.raises(ServiceNameError, match="is in no slice"):
        place_of(Launch(COMMAND, cgroup=cgroup), "web1")


def test_command_line_of_systemd_run() -> None:
    launch = Launch(COMMAND, uid=64055, gid=103, groups=(103, 104))
    words = service_command(launch, "web1", "it", "/var/lib/pageferry/qemu/web1.log", 5.0)
    ours, theirs = words[: words.index("--")], words[words.index("--") + 1 :]
    assert theirs == [COMMAND[0], "-name", "a$$HOME%n", "-S"]
    assert {"--collect", "--unit=pageferry-guest-web1.service", "--slice=machine.slice"} <= set(
        ours
    )
    assert {"--property=User=64055", "--property=Group=103"} <= set(ours)
    # Else systemd would end the worker that receives the guest, together with QEMU.
    assert "--property=KillMode=process" in ours
    assert "--scope" not in ours, "a scope is still in our sandbox"
    as_root = service_command(Launch(COMMAND), "web1", "it", "/log", 5.0)
    assert not any("User=" in word or "Group=" in word for word in as_root)


def test_only_root_under_systemd_starts_guests_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starts(path: str | None, uid: int, booted: Path) -> bool:
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        monkeypatch.setattr("pageferry.daemon.systemd.BOOTED_FOLDER", str(booted))
        return ServiceManager(path).starts_guests

    notify = "/run/systemd/notify"
    assert starts(notify, 0, tmp_path)
    assert not starts(None, 0, tmp_path), "started by hand"
    assert not starts(notify, 0, tmp_path / "none"), "another service manager"
    assert not starts(notify, 1000, tmp_path)


def test_a_command_that_goes_through_systemd_by_itself_is_left_alone() -> None:
    assert in_service(Launch(COMMAND)).in_service
    assert not in_service(Launch(("/usr/bin/systemd-run", *COMMAND))).in_service
    launch = in_service(Launch(COMMAND))
    assert Launch.from_packet(launch.to_packet()) == launch


SYSTEMD = """
    import os, pathlib, signal, subprocess, sys
    folder = pathlib.Path(sys.argv[0]).parent
    words = sys.argv[1:]
    kept = folder / "description"
    if words[0] == "show" and "--property=Description" in words:
        print(kept.read_text() if kept.exists() else words[-1])
    elif words[0] == "show":
        print((folder / "pid").read_text())
    elif words[0] == "stop":
        (folder / "stopped").write_text(words[1])
        kept.unlink(missing_ok=True)
        if pid := int((folder / "pid").read_text()):
            os.kill(pid, signal.SIGKILL)
    elif (folder / "refuses").exists():
        print("Failed to start transient service unit: it is loaded already.")
        sys.exit(1)
    else:
        kept.write_text(next(w for w in words if "--description=" in w).partition("=")[2])
        if (folder / "hangs").exists():
            (folder / "pid").write_text("0")
            sys.exit(0)
        # As a child of the test's, which init does not reap at once.
        command = [word.replace("$$", "$") for word in words[words.index("--") + 1 :]]
        log = next(word for word in words if "StandardOutput=" in word).partition("append:")[2]
        with open(log, "a") as output:
            child = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        (folder / "pid").write_text(str(child.pid))
"""

GREETER = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("listens", flush=True)
peers = []
while True:
    peer, _ = server.accept()
    peer.send(b'{"return": {}}')
    peers.append(peer)
"""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program in the place of systemd-run and systemctl."""
    folder = tmp_path / "systemd"
    folder.mkdir()
    program = folder / "systemd"
    program.write_text(f"#!{sys.executable}\n{textwrap.dedent(SYSTEMD)}")
    program.chmod(0o755)
    monkeypatch.setattr(guest_service, "SYSTEMD_RUN", str(program))
    monkeypatch.setattr(service, "SYSTEMCTL", str(program))
    # The cgroup would be the service's.
    monkeypatch.setattr(service, "is_in", lambda _service, _pid: True)
    monkeypatch.setattr("pageferry.migration.launched.remove_cgroup", _no_cgroup)
    return folder


async def _no_cgroup(_path: Path) -> None:
    """This test's own cgroup is not to be removed."""


class GivenUpError(Exception):
    pass


async def test_systemd_starts_it_and_ends_it(systemd: Path, tmp_path: Path) -> None:
    qmp = tmp_path / "qmp"
    launch = Launch((sys.executable, "-c", GREETER, str(qmp)), in_service=True)
    found: list[LaunchedQemu | None] = []

    async def give_up() -> None:
        async with waiting_qemu(launch, str(qmp), "web1", tmp_path, "m1") as launching:
            found.append(launching.launched)
            raise GivenUpError

    with pytest.raises(GivenUpError):
        await give_up()
    launched = found[0]
    assert launched is not None
    assert launched.service == "pageferry-guest-web1.service"
    assert LaunchedQemu.from_notes(launched.as_notes()) == launched
    assert (systemd / "stopped").read_text() == "pageferry-guest-web1.service"
    assert not launched.identity.is_alive
    assert not qmp.exists()
    assert (tmp_path / "qemu" / "web1.log").read_text() == "listens\n"


async def test_what_ends_at_once_is_told_with_its_words(systemd: Path, tmp_path: Path) -> None:
    launch = Launch(("/bin/sh", "-c", "echo it cannot be; exit 1"), in_service=True)
    with pytest.raises(RefusedError, match=r"it ended at once; it said: it cannot be"):
        async with waiting_qemu(launch, str(tmp_path / "qmp"), "web1", tmp_path, "m1"):
            pass


async def test_what_systemd_refuses_is_told_and_nothing_is_stopped(
    systemd: Path, tmp_path: Path
) -> None:
    (systemd / "refuses").touch()
    launch = Launch((sys.executable, "-c", "pass"), in_service=True)
    with pytest.raises(RefusedError, match=r"status 1; it said: .* loaded already"):
        async with waiting_qemu(launch, str(tmp_path / "qmp"), "web1", tmp_path, "m1"):
            pass
    assert not (systemd / "stopped").exists()


async def test_a_cgroup_in_no_slice_is_refused_with_what_to_write(
    systemd: Path, tmp_path: Path
) -> None:
    launch = Launch((sys.executable, "-c", "pass"), cgroup="/guests/web1", in_service=True)
    with pytest.raises(RefusedError, match=r"write as in /machine\.slice/web1"):
        async with waiting_qemu(launch, str(tmp_path / "qmp"), "web1", tmp_path, "m1"):
            pass


async def test_the_service_of_another_process_is_not_stopped(systemd: Path) -> None:
    ours = process_identity(os.getpid())
    assert ours is not None
    identity = replace(ours, start_ticks=ours.start_ticks - 1)
    await service.stop("pageferry-guest-web1.service", identity)
    assert not (systemd / "stopped").exists()


async def test_what_systemd_was_asked_for_is_ended_by_whoever_comes_after(
    systemd: Path, tmp_path: Path
) -> None:
    """The worker died before it heard what process it is."""
    qmp, log = tmp_path / "qmp", tmp_path / "log"
    launch = Launch((sys.executable, "-c", GREETER, str(qmp)), in_service=True)
    unrecorded = unrecorded_path(tmp_path, "m1")
    asked = AskedQemu(
        service.AskedFor(service_of("web1"), description_of("web1", "m1")), str(qmp), ()
    )
    unrecorded.write_text(json.dumps(asked.as_notes()))
    command = service_command(launch, "web1", asked.service.description, str(log), 5.0)
    with log.open("w") as output:
        assert await service.start(command, output.fileno(), os.environ) == 0
    main = await service.main_process(asked.service.name)
    assert main is not None
    with trio.fail_after(10.0):
        while not listens(str(qmp)):  # noqa: ASYNC110 - no event tells
            await trio.sleep(0.01)
    assert await end_unrecorded(unrecorded)
    assert not main.is_alive
    assert not unrecorded.exists()
    assert not qmp.exists()


async def test_a_service_that_another_migration_asked_for_is_left_alone(systemd: Path) -> None:
    (systemd / "description").write_text(description_of("web1", "m2"))
    assert await service.AskedFor(service_of("web1"), description_of("web1", "m1")).end()
    assert not (systemd / "stopped").exists()


async def test_a_start_that_is_given_up_halfway_leaves_no_service(
    systemd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_service: str) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(service, "main_process", never)
    (systemd / "hangs").touch()
    launch = Launch((sys.executable, "-c", "pass"), in_service=True)
    with trio.move_on_after(3.0) as scope:
        async with waiting_qemu(launch, str(tmp_path / "qmp"), "web1", tmp_path, "m1"):
            pass
    assert scope.cancelled_caught
    assert (systemd / "stopped").read_text() == service_of("web1")
    assert not unrecorded_path(tmp_path, "m1").exists()
