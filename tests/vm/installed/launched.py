"""A destination's QEMU that an installed agent starts, by systemd."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.cgroups import LabCgroup
from pageferry.testing.lab.guests import VERIFY_TIMEOUT_S, FreestandingGuest
from pageferry.testing.lab.latency import Verification, parse_verified
from pageferry.testing.lab.qemus import qemu_command
from pageferry.testing.lab.vm.debian import USER
from tests.vm.installed.guests import SLICE
from tests.vm.installed.units import CGROUPS, GUESTS, THERE, run

NAME = "launched"
SERVICE = f"pageferry-guest-{NAME}.service"
RAM = Path("/dev/shm", NAME)

SETTINGS = """
[guests.{name}]
qmp = {qmp}
launch = {command}
launch-user = "{user}"
launch-cgroup = "/{slice}/{name}"
"""


@dataclass(slots=True)
class Launched:
    """What THERE starts for the guest, and what is left of it."""

    guest: FreestandingGuest
    command: tuple[str, ...]
    serial: Path
    serial_number: int

    def await_next(self) -> None:
        """Listen to the serial port of the next QEMU: the one that was connected has ended."""
        self.guest.serial.detach(self.serial_number)
        self.serial.unlink()
        self.serial_number = self.guest.serial.attach(self.serial)

    @property
    def options(self) -> tuple[str, ...]:
        """For `pageferry migrate`."""
        return ("--destination-guest", NAME, "--json")

    def settings(self, ram: str = "") -> str:
        """For THERE's configuration; *ram*: another size than the guest's."""
        ours = f"{self.guest.plan.ram_mib}M"
        words = [word.replace(ours, ram) if ram else word for word in self.command]
        return SETTINGS.format(
            name=NAME,
            qmp=json.dumps(str(GUESTS / f"{NAME}.qmp")),
            command=json.dumps(words),
            user=USER,
            slice=SLICE,
        )

    def show(self, name: str) -> str:
        """A property of the service."""
        return run("systemctl", "show", "--value", "-p", name, SERVICE).strip()

    def pid(self) -> int:
        """QEMU's process."""
        return int(self.show("MainPID"))

    def cgroup(self) -> LabCgroup:
        """The service's cgroup."""
        return LabCgroup(2, CGROUPS / SLICE / SERVICE)

    def log(self) -> Path:
        """What QEMU printed."""
        return Path("/var/lib", THERE.folder, "qemu", f"{NAME}.log")

    def leftovers(self) -> list[str]:
        """What there is of one that was started."""
        paths = (RAM, GUESTS / f"{NAME}.qmp", self.cgroup().path)
        found = [str(path) for path in paths if path.exists()]
        return found + ([SERVICE] if self.show("LoadState") == "loaded" else [])

    def verified(self) -> Verification:
        """The guest's own word on its memory, from where it is now."""
        before = len(self._verifications())
        self.guest.serial.write(self.serial_number, b"v")
        deadline = time.monotonic() + VERIFY_TIMEOUT_S
        while len(self._verifications()) == before:
            assert time.monotonic() < deadline, self.guest.lines[-3:]
            time.sleep(0.2)
        return parse_verified(self._verifications()[-1], [])

    def _verifications(self) -> list[str]:
        return [line for line in self.guest.lines if line.startswith("VERIFIED ")]


@contextlib.contextmanager
def launchable(guest: FreestandingGuest) -> Iterator[Launched]:
    """All that a QEMU like the guest's needs, but the QEMU; ended afterwards."""
    serial = guest.folder / f"{NAME}.serial"
    number = guest.serial.attach(serial)
    machine = guest.plan.as_machine()
    command = qemu_command(NAME, machine, guest.folder, RAM, serial, incoming=True)
    try:
        yield Launched(guest, tuple(command), serial, number)
    finally:
        run("systemctl", "stop", SERVICE, check=False)
        RAM.unlink(missing_ok=True)
