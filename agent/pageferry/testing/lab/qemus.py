"""One QEMU of the lab: its process, cgroup, sockets and RAM file."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pageferry.model.residency import ResidencyBytes
from pageferry.testing.lab.cgroups import LabCgroup, memory_cgroup
from pageferry.testing.lab.cleanup import LabError, undone_by
from pageferry.testing.lab.hosts import major_faults, ram_file, residency_of
from pageferry.testing.lab.monitor import LabMonitor
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.patience import patient
from pageferry.testing.lab.serial import SerialPort

START_TIMEOUT_S = patient(20.0)
"""From exec to both QMP sockets; a loaded host takes a second or two."""

STOP_TIMEOUT_S = patient(10.0)

RAM_BACKENDS = ("file", "memfd", "private", "memfd-private", "memfd-hugetlb")
"""file: memory-backend-file in /dev/shm, shared. memfd: memory-backend-memfd, shared. The others
are what a migration must refuse.
"""

TRANSLATION_MIB = 32
"""TCG's cache of translated code: the guests are tiny, and it is charged to the guest's cgroup."""


@dataclass(frozen=True, slots=True)
class Machine:
    """How one QEMU is started. `limit_bytes` None: it runs in the lab's own cgroup, unlimited.

    `prefix`: a command that starts it by exec, so that the process stays the same.
    """

    binary: QemuBinary
    machine: str = "q35"
    ram_mib: int = 1024
    backend: str = "file"
    accelerator: str = "tcg"
    limit_bytes: int | None = None
    arguments: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()


@dataclass(slots=True)
class LabQemu:
    """A running QEMU. `qmp_path` is for pageferry, `monitor` is the lab's own connection."""

    name: str
    machine: Machine
    folder: Path
    process: subprocess.Popen[bytes]
    cgroup: LabCgroup | None
    ram_path: Path | None
    serial_number: int
    _ram_descriptor: int | None = field(default=None, init=False)
    _monitor: LabMonitor | None = field(default=None, init=False)

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    @property
    def qmp_path(self) -> Path:
        """The QMP socket for pageferry."""
        return self.folder / f"{self.name}.qmp"

    @property
    def monitor(self) -> LabMonitor:
        """The lab's own QMP connection, made when first asked for."""
        if self._monitor is None:
            self._monitor = LabMonitor(self.folder / f"{self.name}.lab")
        return self._monitor

    def status(self) -> str:
        """QEMU's run state, such as ``running``; ``gone`` when the process has ended."""
        if self.process.poll() is not None:
            return "gone"
        return str(self.monitor.execute("query-status")["status"])

    def residency(self) -> ResidencyBytes:
        """Residency of its RAM file now."""
        return residency_of(self.ram_descriptor())

    def ram_descriptor(self) -> int:
        """A descriptor of its RAM file, kept open until the QEMU is stopped by the lab."""
        if self._ram_descriptor is None:
            self._ram_descriptor = os.open(self._ram_file_path(), os.O_RDONLY)
        return self._ram_descriptor

    def vcpu_threads(self) -> list[int]:
        """The threads that run the guest's processors."""
        return [int(cpu["thread-id"]) for cpu in self.monitor.execute("query-cpus-fast")]

    def vcpu_major_faults(self) -> int:
        """How often a vCPU has waited for a page to come from swap."""
        return sum(major_faults(self.pid, thread) for thread in self.vcpu_threads())

    def log(self) -> str:
        """What it printed."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

    def stop(self) -> None:
        """End it at once. Does nothing when it has ended."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self._ram_descriptor is not None:
            os.close(self._ram_descriptor)
            self._ram_descriptor = None
        self.process.kill()
        self.process.wait(timeout=STOP_TIMEOUT_S)
        for kind in ("qmp", "lab", "serial"):
            (self.folder / f"{self.name}.{kind}").unlink(missing_ok=True)

    def _ram_file_path(self) -> Path:
        if self.ram_path is not None:
            return self.ram_path
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(link).startswith("/memfd:memory-backend-memfd"):
                    return link
        raise LabError(f"{self.name} has no RAM file")


@contextlib.contextmanager
def run_qemu(
    name: str, machine: Machine, folder: Path, serial: SerialPort, *, incoming: bool = False
) -> Iterator[LabQemu]:
    """A running QEMU named `name` with its sockets in `folder`; ended and cleared away afterwards.

    `incoming`: a destination, ``-S -incoming defer``. LabError with its output when it does not
    start.
    """
    with contextlib.ExitStack() as stack:
        cgroup = ram_path = None
        if machine.limit_bytes is not None:
            cgroup = stack.enter_context(memory_cgroup(name, machine.limit_bytes))
        if machine.backend in ("file", "private"):
            ram_path = stack.enter_context(ram_file(name))
        serial_path = folder / f"{name}.serial"
        serial_number = serial.attach(serial_path)
        command = [
            *machine.prefix,
            *qemu_command(name, machine, folder, ram_path, serial_path, incoming=incoming),
        ]
        if cgroup is not None:
            command = cgroup.command(command)
        log = stack.enter_context((folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=machine.binary.full_environment(),
        )
        qemu = LabQemu(name, machine, folder, process, cgroup, ram_path, serial_number)
        stack.enter_context(undone_by(qemu.stop))
        _wait_for_sockets(qemu)
        yield qemu


def qemu_command(
    name: str,
    machine: Machine,
    folder: Path,
    ram_path: Path | None,
    serial_path: Path,
    *,
    incoming: bool,
) -> list[str]:
    """The command line of a QEMU whose sockets are in `folder`, its RAM in `ram_path`."""
    arguments = [
        *("-name", name, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", f"{machine.machine},memory-backend=ram0"),
        *("-m", f"{machine.ram_mib}M", "-object", _backend(machine, ram_path)),
        *("-accel", _accelerator(machine.accelerator)),
        *("-chardev", f"socket,id=serial0,path={serial_path}", "-serial", "chardev:serial0"),
        *("-qmp", f"unix:{folder / name}.qmp,server=on,wait=off"),
        *("-qmp", f"unix:{folder / name}.lab,server=on,wait=off"),
        *machine.arguments,
    ]
    if incoming:
        arguments += ["-S", "-incoming", "defer"]
    return machine.binary.command(*arguments)


def _backend(machine: Machine, ram_path: Path | None) -> str:
    size = f"size={machine.ram_mib}M"
    if machine.backend == "memfd":
        return f"memory-backend-memfd,id=ram0,{size},share=on"
    if machine.backend == "memfd-hugetlb":
        return f"memory-backend-memfd,id=ram0,{size},share=on,hugetlb=on,hugetlbsize=2M"
    if machine.backend == "memfd-private":
        return f"memory-backend-memfd,id=ram0,{size},share=off"
    share = "on" if machine.backend == "file" else "off"
    return f"memory-backend-file,id=ram0,{size},mem-path={ram_path},share={share}"


def _accelerator(name: str) -> str:
    return f"tcg,tb-size={TRANSLATION_MIB}" if name == "tcg" else name


def _wait_for_sockets(qemu: LabQemu) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (qemu.qmp_path.exists() and (qemu.folder / f"{qemu.name}.lab").exists()):
        if qemu.process.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"{qemu.name} QEMU did not start: {qemu.log().strip()}")
        time.sleep(0.01)
    # The sockets exist a moment before QEMU listens: the lab's connection tells.
    _connect(qemu, deadline)


def _connect(qemu: LabQemu, deadline: float) -> None:
    while True:
        try:
            _ = qemu.monitor
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise LabError(f"{qemu.name} QEMU does not listen on QMP") from None
            time.sleep(0.02)
        else:
            return
