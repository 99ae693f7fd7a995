"""The installed package on a Debian with systemd: its units, their sandbox, a migration in it.

Run in the VM, in this order: one guest is refused, left alone, and carried in the end. What was
found is printed in lines, ``FIGURES`` and a JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry.control.info import MigrationInfo
from pageferry.testing.lab.guests import FreestandingGuest
from pageferry.testing.lab.patience import patient
from pageferry.testing.lab.vm.debian import FOLDER, USER
from tests.vm.installed.guests import cgroup_of, guest_pair
from tests.vm.installed.launched import launchable
from tests.vm.installed.units import (
    HERE,
    SHIPPED,
    THERE,
    TIMEOUT_S,
    Agent,
    directories,
    make_like_shipped,
    make_second,
    reload,
    restart,
    run,
    status_of,
    workers,
)

CAPABILITIES = {"CAP_DAC_OVERRIDE": 1, "CAP_SYS_PTRACE": 19}
"""All that the agents have, as in docs/deployment.md."""

MOST_EXPOSED = 3.0
"""Of systemd-analyze's scale, 0 (safe) to 10."""

PACKAGE = Path(FOLDER, "pageferry.deb")

DEMO_TIMEOUT_S = patient(150.0)
"""With its small guest it takes a quarter of a minute on a host; here that is emulated within an
emulation."""

SLACK_BYTES = 2 << 20
LEAST_ARRIVED_BYTES = 8 << 20
"""Of the guest's memory, where it has arrived."""

AGENT_SHMEM_BYTES = 256 << 10
"""Journals lie on a disk here; what is shmem of an agent's is not guests' memory."""

SLOWLY = "64K"
"""A second, of some 60 MiB: the migration is still on its way when its agents have been restarted,
on a busy host after ten minutes."""


def show(**figures: object) -> None:
    print("FIGURES", json.dumps(figures))


@pytest.fixture(scope="module", autouse=True)
def _two_agents() -> None:
    """The installed agent as it was started by its package, and a second one beside it."""
    make_second()
    for agent in (HERE, THERE):
        agent.configure()
    restart(HERE, THERE)


@pytest.fixture(scope="module")
def guest() -> Iterator[FreestandingGuest]:
    with guest_pair() as pair:
        yield pair


@contextlib.contextmanager
def changed(text: str, *agents: Agent) -> Iterator[None]:
    """These units with more in them, while the block runs."""
    paths = [agent.drop_in("90-test", text) for agent in agents]
    try:
        restart(*agents)
        yield
    finally:
        for path in paths:
            path.unlink()
        run("systemctl", "daemon-reload")
        restart(*agents)


def start_slowly() -> str:
    """Begin to migrate; returns the migration's ID once memory is on its way."""
    done = HERE.cli(
        *("migrate", "source", f"127.0.0.1:{THERE.port}", "--destination-guest", "destination"),
        *("--verify", "--max-bandwidth", SLOWLY, "--detach", "--json"),
    )
    assert done.returncode == 0, (done.stdout, done.stderr, HERE.journal())
    wait_until(lambda: info().transferred_bytes > 0, "sent anything")
    return info().migration_id


def info(agent: Agent = HERE) -> MigrationInfo:
    with agent.client() as client:
        raw = client.execute("query-migrations")[-1]
    return MigrationInfo.from_dict(raw)


def wait_until(done: object, what: str, timeout_s: float = TIMEOUT_S) -> None:
    assert callable(done)
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"not {what}: {HERE.journal()}"
        time.sleep(0.2)


def assert_runs_on_source(guest: FreestandingGuest) -> None:
    assert guest.source.status() == "running"
    assert guest.destination is not None
    assert guest.destination.status() == "inmigrate"


def test_package_started_its_daemon() -> None:
    log = (Path(FOLDER) / "install.log").read_text()
    assert "error" not in log.lower(), log
    assert run("systemctl", "is-enabled", HERE.unit).strip() == "enabled"
    for agent in (HERE, THERE):
        assert agent.show("ActiveState") == "active"
        assert agent.show("SubState") == "running"
    assert run("pageferry", "--version").startswith("pageferry ")
    changed_files = [
        line
        for line in run("dpkg", "--verify", "pageferry").splitlines()
        # This Debian goes without documentation, and the configuration is the fixture's.
        if not re.search(r"/usr/share/(doc|man)/| /etc/pageferry/", line)
    ]
    assert not changed_files


def test_processes_have_the_capabilities_that_are_documented() -> None:
    expected = sum(1 << number for number in CAPABILITIES.values())
    for agent in (HERE, THERE):
        status = status_of(agent.pid())
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert int(status[name], 16) == expected, (name, status[name])
        for name in ("CapInh", "CapAmb"):
            assert int(status[name], 16) == 0, (name, status[name])
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_exposure() -> None:
    text = run("systemd-analyze", "security", "--no-pager", HERE.unit)
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
    assert match is not None, text
    show(exposure=float(match[1]))
    assert float(match[1]) <= MOST_EXPOSED, text


def test_sandbox_denies_what_the_agent_has_no_need_of() -> None:
    found = attempts("confined")
    show(sandbox=found)
    assert {name: found[name] for name in ALLOWED} == ALLOWED
    denied = {name: each for name, each in found.items() if name not in ALLOWED}
    assert set(denied.values()) <= {"EPERM", "EACCES", "EROFS", "ENOENT", "EAFNOSUPPORT", "empty"}
    for name in ("finit_module", "mount", "swapon", "reboot", "bpf", "setuid", "iopl"):
        assert denied[name] == "EPERM"


# What the agent needs, and how the kernel answers it once the sandbox let it through; and what no
# sandbox of systemd's keeps a process with CAP_SYS_PTRACE from (docs/threat-model.md).
ALLOWED = {
    "write a cgroup": "allowed",
    "write its own state": "allowed",
    "a TCP socket": "allowed",
    "cachestat": "EBADF",
    "ptrace": "ESRCH",
    "pidfd_getfd": "EBADF",
    "userfaultfd": "allowed",
    "write /etc as init sees it": "allowed",
    "trace a process of root": "allowed",
}


def attempts(name: str, more: str = "") -> dict[str, str]:
    """What ``confined.py`` found, run in the shipped unit's sandbox, with *more* in the unit."""
    # Beside the configuration, where a profile lets the agent read.
    program = HERE.configuration.with_name("confined.py")
    shutil.copyfile(Path(__file__).with_name("confined.py"), program)
    roots = subprocess.Popen(["sleep", "600"])
    others = subprocess.Popen(["setpriv", f"--reuid={USER}", "--clear-groups", "sleep", "600"])
    make_like_shipped(
        name,
        "[Service]\nType=oneshot\nNotifyAccess=none\nRestart=no\nFileDescriptorStoreMax=0\n"
        f"WatchdogSec=0\nExecReload=\n{directories(name)}"
        f"Environment=OTHERS_PID={others.pid} ROOTS_PID={roots.pid}\nExecStart=\n"
        f"ExecStart=/usr/lib/pageferry/bin/python3 -I {program}\n{more}",
    )
    try:
        run("systemctl", "start", f"{name}.service")
    finally:
        program.unlink()
        for process in (roots, others):
            process.kill()
            process.wait()
    text = run("journalctl", "-u", f"{name}.service", "-o", "cat", "--no-pager")
    lines = [line for line in text.splitlines() if line.startswith("{")]
    found: dict[str, str] = json.loads(lines[-1])
    return found


def test_doctor_is_content_in_the_sandbox(guest: FreestandingGuest) -> None:
    checks = HERE.cli_json("doctor")
    bad = [
        check
        for check in checks
        if check["verdict"] not in ("ok", "unknown") and check["section"] != "tls"
    ]
    assert not bad, bad
    names = {check["name"]: check["found"] for check in checks}
    assert "in use" in names["residency by cachestat"]


@pytest.mark.parametrize(
    ("capability", "says"),
    [("CAP_SYS_PTRACE", "CAP_SYS_PTRACE"), ("CAP_DAC_OVERRIDE", "ermission denied")],
)
def test_each_capability_is_needed(guest: FreestandingGuest, capability: str, says: str) -> None:
    assert capability in CAPABILITIES
    with changed(f"[Service]\nCapabilityBoundingSet=~{capability}\n", HERE):
        left = int(status_of(HERE.pid())["CapEff"], 16)
        assert not left >> CAPABILITIES[capability] & 1
        done = HERE.cli(
            *("migrate", "source", f"127.0.0.1:{THERE.port}", "--json"),
            *("--destination-guest", "destination"),
        )
        journal = HERE.journal()
    show(without=capability, said=done.stdout.splitlines()[-1] if done.stdout else done.stderr)
    assert done.returncode not in (0, 5), done.stdout
    assert says in done.stdout + done.stderr, (done.stdout, done.stderr, journal)
    assert_runs_on_source(guest)


def test_all_capabilities_were_tried() -> None:
    text = SHIPPED.read_text()
    match = re.search(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)
    assert match is not None
    assert set(match[1].split()) == set(CAPABILITIES)


def as_user(*command: str, groups: str = "") -> subprocess.CompletedProcess[str]:
    """Run the installed command as a user who is nobody in particular, but for these groups."""
    member = f"--groups={groups}" if groups else "--clear-groups"
    return subprocess.run(
        ["setpriv", f"--reuid={USER}", f"--regid={USER}", member, "pageferry", *command],
        capture_output=True,
        text=True,
        check=False,
    )


def test_read_only_group() -> None:
    HERE.configure('read-only-group = "pageferry"')
    HERE.systemctl("restart")
    try:
        asked = as_user("history", "--json", groups="pageferry")
        changing = as_user("set", "--defaults", "verify=true", groups="pageferry")
        stranger = as_user("history", "--json")
    finally:
        HERE.configure()
        HERE.systemctl("restart")
    assert asked.returncode == 0, asked.stderr
    assert changing.returncode not in (0, 6), (changing.stdout, changing.stderr)
    assert stranger.returncode == 6, stranger.stderr


def test_stop_cancels(guest: FreestandingGuest) -> None:
    start_slowly()
    assert workers()
    HERE.systemctl("stop")
    wait_until(lambda: not workers(), "ended")
    assert_runs_on_source(guest)
    HERE.systemctl("start")


def test_restarts_upgrade_and_errors_leave_a_migration_alone(guest: FreestandingGuest) -> None:
    before = guest.source.residency()
    migration = start_slowly()
    both = workers()
    assert len(both) == 2
    scope = cgroup_of(guest.destination).path if guest.destination else None
    assert str(scope).removeprefix("/sys/fs/cgroup") in both.values()

    old = HERE.pid()
    HERE.systemctl("restart")
    assert HERE.pid() != old
    assert workers() == both
    assert info().migration_id == migration

    # One that hangs is ended by its watchdog, as the unit has it, and started anew.
    old = THERE.pid()
    os.kill(old, signal.SIGSTOP)
    wait_until(lambda: THERE.pid() not in (0, old), "ended by its watchdog")
    wait_until(lambda: THERE.show("SubState") == "running", "started again")
    assert "Watchdog timeout" in THERE.journal(), THERE.journal()
    assert workers() == both
    assert info(THERE).migration_id == migration

    # An upgrade while it runs; dpkg installs the same version again in the same steps.
    old = HERE.pid()
    said = run("dpkg", "-i", str(PACKAGE))
    assert HERE.pid() != old, said
    assert workers() == both

    # An error is shown, and what runs is left as it is. (The last step of an upgrade, alone.)
    HERE.configure('lisen = "127.0.0.1:1"')
    old = HERE.pid()
    said = run("/var/lib/dpkg/info/pageferry.postinst", "configure", "0")
    assert "lisen" in said
    assert "not" in said
    assert (HERE.pid(), workers()) == (old, both)

    # Restarted with the error, the daemon is tried again until it is corrected.
    with pytest.raises(AssertionError, match="lisen"):
        HERE.systemctl("restart")
    time.sleep(5)
    assert workers() == both
    HERE.configure()
    wait_until(lambda: HERE.show("SubState") == "running", "started")
    assert workers() == both
    assert info().migration_id == migration

    done = HERE.cli("set", "source", "max-bandwidth=0")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: info().is_final, "over")
    found = info()
    assert found.status == "completed", (found.raw, HERE.journal(), THERE.journal())
    assert found.verified
    assert guest.destination is not None
    # Before the guest wakes all of it.
    after = guest.destination.residency()
    verified = guest.verify()
    assert verified.bad == 0, verified
    show(
        downtime_ms=found.downtime_ms,
        total_ms=found.total_time_ms,
        resident_bytes=[before.resident_bytes, after.resident_bytes],
        swapped_bytes=[before.swapped_bytes, after.swapped_bytes],
        verified_pages=verified.pages,
    )


def test_memory_is_charged_to_the_destination(guest: FreestandingGuest) -> None:
    assert guest.destination is not None
    group = cgroup_of(guest.destination)
    resident = guest.destination.residency().resident_bytes
    charged = group.stat()["shmem"]
    of_agents = {agent.name: agent.cgroup().stat()["shmem"] for agent in (HERE, THERE)}
    show(destination_shmem=charged, resident=resident, agents_shmem=of_agents)
    assert abs(charged - resident) <= SLACK_BYTES
    assert max(of_agents.values()) <= AGENT_SHMEM_BYTES
    assert guest.destination.status() == "running"


def test_apparmor_profile_lets_it_migrate_and_keeps_it_from_root(guest: FreestandingGuest) -> None:
    local = Path("/etc/apparmor.d/local/pageferryd")
    local.parent.mkdir(exist_ok=True)
    local.write_text(
        "".join(
            f"owner {root}/{THERE.folder}/ rw,\nowner {root}/{THERE.folder}/** rwkl,\n"
            for root in ("/var/lib", "/run")
        )
    )
    run("apparmor_parser", "-r", "/usr/share/pageferry/apparmor/pageferryd")
    carry_if_still_on_source(guest)
    third = guest.start_destination(name="third")
    with changed(f"[Service]\nAppArmorProfile={HERE.name}\n", HERE, THERE):
        for agent in (HERE, THERE):
            label = Path(f"/proc/{agent.pid()}/attr/current").read_text().strip()
            assert label == f"{HERE.name} (enforce)"
        checks = HERE.cli_json("doctor")
        # The guest has left the first QEMU.
        bad = [
            each for each in checks if each["verdict"] == "blocked" and each["guest"] != "source"
        ]
        done = THERE.cli(
            *("migrate", "destination", f"127.0.0.1:{HERE.port}", "--destination-guest", "third"),
            *("--verify", "--json"),
        )
        logged = run("journalctl", "-k", "--no-pager", "-o", "cat", "-g", "DENIED", check=False)
    found = attempts("profiled", f"AppArmorProfile={HERE.name}\n")
    show(apparmor=found, denied=logged.splitlines()[:40])
    assert done.returncode == 0, (done.stdout, logged)
    assert not bad, bad
    assert third.status() == "running"
    assert guest.verify().bad == 0
    for name in ("write /etc as init sees it", "trace a process of root"):
        assert found[name] in ("EACCES", "EPERM"), found


def carry_if_still_on_source(guest: FreestandingGuest) -> None:
    """When checks before have not: they may be run one by one."""
    if guest.runner() is guest.source:
        done = HERE.cli(
            *("migrate", "source", f"127.0.0.1:{THERE.port}", "--destination-guest", "destination"),
            "--json",
        )
        assert done.returncode == 0, (done.stdout, HERE.journal(), THERE.journal())


def test_a_destination_is_started_outside_of_the_sandbox(guest: FreestandingGuest) -> None:
    """The guest goes on to a QEMU that its destination's agent starts, in a service of its own."""
    where = guest.runner().name
    with launchable(guest) as launched:
        # The first has another size of RAM: it is refused when it runs, and goes without a trace.
        THERE.configure(launched.settings("16M"))
        reload(THERE)
        done = HERE.cli("migrate", where, f"127.0.0.1:{THERE.port}", *launched.options)
        assert done.returncode not in (0, 5), done.stdout
        show(refused=done.stdout.splitlines()[-1] if done.stdout else done.stderr)
        assert launched.log().exists(), "QEMU was started"
        assert not launched.leftovers(), launched.leftovers()
        assert guest.runner().name == where

        launched.await_next()
        THERE.configure(launched.settings())
        reload(THERE)
        done = HERE.cli("migrate", where, f"127.0.0.1:{THERE.port}", *launched.options)
        assert done.returncode == 0, (done.stdout, THERE.journal(), launched.log().read_text())
        status = status_of(launched.pid())
        show(launched={name: status[name] for name in ("Uid", "NoNewPrivs", "Seccomp", "CapBnd")})
        assert set(status["Uid"].split()) == {str(pwd.getpwnam(USER).pw_uid)}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("0", "0")
        assert os.readlink(f"/proc/{launched.pid()}/ns/mnt") == os.readlink("/proc/1/ns/mnt")
        assert launched.cgroup().stat()["shmem"] >= LEAST_ARRIVED_BYTES
        assert THERE.cgroup().stat()["shmem"] <= AGENT_SHMEM_BYTES

        # It is a guest like others: its agent may go, with all that the agent has.
        THERE.systemctl("stop")
        assert launched.verified().bad == 0
        assert launched.show("ActiveState") == "active"


def test_socket_unit_keeps_the_socket_over_a_restart() -> None:
    HERE.systemctl("stop")
    run("systemctl", "start", "pageferryd.socket")
    try:
        # Here the daemon takes longer to start than the client is ready to wait.
        wait_until(lambda: HERE.cli("history").returncode == 0, "started by its socket")
        assert HERE.show("ActiveState") == "active"
        client = subprocess.Popen(
            ["sh", "-c", "while :; do pageferry history --json >/dev/null || exit 1; done"]
        )
        HERE.systemctl("restart")
        HERE.systemctl("restart")
        assert client.poll() is None
        client.kill()
        client.wait()
    finally:
        HERE.systemctl("stop")
        run("systemctl", "stop", "pageferryd.socket")
        HERE.systemctl("start")


def lab_files() -> list[str]:
    """RAM of guests, the demo's or these checks' own."""
    return sorted(path.name for path in Path("/dev/shm").glob("pageferry-lab-*"))


def test_demo_runs_from_the_package() -> None:
    before = lab_files()
    result = Path(FOLDER) / "demo.json"
    said = run("pageferry", "demo", "--small", "--json", str(result), timeout_s=DEMO_TIMEOUT_S)
    found = json.loads(result.read_text())
    show(demo={name: found[name] for name in ("total_ms", "downtime_ms", "cold_bytes", "rounds")})
    assert found["verified"], said
    assert found["residency"]["destination"]["after"]["swapped_bytes"] > 0, found
    assert lab_files() == before


def test_removal_keeps_journals_and_purge_leaves_nothing() -> None:
    said = run("dpkg", "--remove", "pageferry")
    assert run("systemctl", "is-active", HERE.unit, check=False).strip() != "active", said
    assert Path("/var/lib/pageferry/history.jsonl").exists()
    assert HERE.configuration.exists()
    said = run("dpkg", "--purge", "pageferry")
    for path in ("/var/lib/pageferry", "/usr/lib/pageferry", str(HERE.configuration)):
        assert not Path(path).exists(), (path, said)
