"""The installed package's units on this Debian: the shipped one, and a second agent like it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pageferry.control.sync_client import SyncClient, connect
from pageferry.testing.lab.cgroups import LabCgroup
from pageferry.testing.lab.patience import patient

SHIPPED = Path("/usr/lib/systemd/system/pageferryd.service")
MADE = Path("/etc/systemd/system")
CGROUPS = Path("/sys/fs/cgroup")

GUESTS = Path("/run/guests")
"""Where QMP sockets of guests lie."""

TIMEOUT_S = patient(150.0)
"""An upgrade takes a minute here on an idle host, and more beside a guest."""

START_S = patient(90.0)
"""systemd's own limit for starting a service, made patient: the daemon takes half a second to start
on a host and some 10 here, and several times that where the VM's host is busy."""

SLOW = f"[Service]\nTimeoutStartSec={START_S:.0f}\n"

RELOADED = "configuration read again"

CONFIGURATION = """\
[daemon]
listen = "127.0.0.1:{port}"
control-socket = "/run/{folder}/control.sock"
state-directory = "/var/lib/{folder}"
guest-sockets = "{guests}/{{name}}.qmp"
{settings}

[defaults]
downtime-limit = {downtime_limit_ms}
"""

DOWNTIME_LIMIT_MS = 30_000
"""At the end of a migration Python takes some hundred small steps, and an emulated processor that a
guest shares takes seconds for them: 2.6 were expected where a host would have needed 0.1."""


def run(*command: str, check: bool = True, timeout_s: float = TIMEOUT_S) -> str:
    """What a command said, standard error included. Raises AssertionError when it fails."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert not check or done.returncode == 0, (command, done.returncode, done.stdout)
    return done.stdout


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent: its unit, and what its configuration says."""

    name: str
    folder: str
    port: int
    configuration: Path

    @property
    def unit(self) -> str:
        """Its unit's name."""
        return f"{self.name}.service"

    @property
    def control_socket(self) -> Path:
        """As configured."""
        return Path(f"/run/{self.folder}/control.sock")

    def configure(self, settings: str = "") -> None:
        """Write its configuration, with more keys of [daemon]."""
        text = CONFIGURATION.format(
            folder=self.folder,
            port=self.port,
            guests=GUESTS,
            settings=settings,
            downtime_limit_ms=DOWNTIME_LIMIT_MS,
        )
        self.configuration.write_text(text)

    def show(self, name: str) -> str:
        """A property of the unit."""
        return run("systemctl", "show", "--value", "-p", name, self.unit).strip()

    def pid(self) -> int:
        """The daemon's process."""
        return int(self.show("MainPID"))

    def cgroup(self) -> LabCgroup:
        """The unit's cgroup."""
        return LabCgroup(2, CGROUPS / self.show("ControlGroup").lstrip("/"))

    def systemctl(self, verb: str) -> str:
        """A verb of systemctl that must succeed; its unit's journal otherwise."""
        try:
            return run("systemctl", verb, self.unit)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.journal()}") from None

    def journal(self, lines: int = 40) -> str:
        """The last of what it logged, and systemd about it."""
        return run("journalctl", "-u", self.unit, "-n", f"{lines}", "--no-pager", "-o", "cat")

    def client(self) -> AbstractContextManager[SyncClient]:
        """A connection to its control socket."""
        return connect(self.control_socket, timeout_s=TIMEOUT_S)

    def cli(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a verb of the installed command to its end."""
        return subprocess.run(
            ["pageferry", verb, "--socket", str(self.control_socket), *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )

    def cli_json(self, verb: str, *arguments: str) -> Any:
        """The same with --json, of a verb that prints one value, whatever its exit status."""
        done = self.cli(verb, *arguments, "--json")
        assert done.stdout, (done.returncode, done.stderr)
        return json.loads(done.stdout)

    def drop_in(self, name: str, text: str) -> Path:
        """Add to the unit, for its next start."""
        path = MADE / f"{self.unit}.d" / f"{name}.conf"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        run("systemctl", "daemon-reload")
        return path


HERE = Agent("pageferryd", "pageferry", 49400, Path("/etc/pageferry/pageferryd.toml"))
THERE = Agent("pageferryd-there", "pageferry-there", 49500, Path("/etc/pageferry/there.toml"))
"""The second one: the shipped unit by another name, with a configuration of its own."""


def restart(*agents: Agent) -> None:
    """Restart them at the same time: starting Python is what takes long here."""
    try:
        run("systemctl", "restart", *(agent.unit for agent in agents))
    except AssertionError as error:
        journals = "\n".join(agent.journal() for agent in agents)
        raise AssertionError(f"{error}\n{journals}") from None


def reload(agent: Agent) -> None:
    """Have it read its configuration again."""
    before = agent.journal().count(RELOADED)
    agent.systemctl("reload")
    deadline = time.monotonic() + TIMEOUT_S
    while agent.journal().count(RELOADED) == before:
        assert time.monotonic() < deadline, agent.journal()
        time.sleep(0.5)


def make_like_shipped(name: str, text: str) -> None:
    """A unit like the shipped one in all that *text* does not say otherwise."""
    (MADE / f"{name}.service").write_text(SHIPPED.read_text())
    folder = MADE / f"{name}.service.d"
    folder.mkdir()
    (folder / "00-slow.conf").write_text(SLOW)
    (folder / "10-own.conf").write_text(text)
    run("systemctl", "daemon-reload")


def directories(name: str) -> str:
    """Lines of a unit: directories of its own in place of the shipped one's."""
    return "".join(f"{kind}Directory=\n{kind}Directory={name}\n" for kind in ("State", "Runtime"))


def make_second() -> None:
    """Make THERE's unit."""
    make_like_shipped(
        THERE.name,
        "[Service]\nExecStart=\n"
        f"ExecStart=/usr/sbin/pageferryd --config {THERE.configuration}\n"
        f"{directories(THERE.folder)}",
    )


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status by name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def workers() -> dict[int, str]:
    """The workers that have a migration now, and so its journal open, each with its cgroup."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            files = [os.readlink(link) for link in (folder / "fd").iterdir()]
            at_work = any(name.startswith("/var/lib/pageferry") for name in files)
            if b"pageferry.migration.worker" in words and at_work:
                group = (folder / "cgroup").read_text().strip().removeprefix("0::")
                found[int(folder.name)] = group
        except OSError:
            continue
    return found
