"""The Linux guest as tests use it: start, load disks and memory, check them, pair, migrate.

Debian's cloud kernel with an init of the lab's own (``linux/``), which obeys commands and reports
over the serial port.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.disks import LabDisk
from pageferry.testing.lab.hosts import scratch_folder
from pageferry.testing.lab.kvm import ACCELERATOR_VARIABLE, accelerator_for
from pageferry.testing.lab.linux import initramfs
from pageferry.testing.lab.packages import QemuBinary, cloud_kernel
from pageferry.testing.lab.paired import PairedGuest
from pageferry.testing.lab.qemus import Machine

MIB = 1024 * 1024

READY_TIMEOUT_S = 120.0
"""Debian's kernel boots in 3 s under TCG on an idle host."""

KVM_BOOT_TIMEOUT_S = 5.0
"""TCG takes 3 s: a KVM that needs longer is none."""

ANSWER_TIMEOUT_S = 60.0
"""Checking 256 MiB of page cache takes 2 s under TCG; a read from a slow disk may be under way."""

COMMAND_LINE = (
    # Under TCG on a busy host the kernel finds its timer too slow and gives up, unless told not to.
    *("console=ttyS0", "quiet", "loglevel=2", "no_timer_check"),
    # There is nobody to protect in this guest, and under TCG each guard costs.
    "mitigations=off",
)


@dataclass(frozen=True, slots=True)
class LinuxPlan:
    """A Linux guest and the machine it gets. `accelerator` None: KVM where it boots this kernel.

    `limit_mib`: of the memory cgroup that its QEMU runs in; None for none.
    """

    binary: QemuBinary
    disks: tuple[LabDisk, ...] = ()
    machine: str = "q35"
    ram_mib: int = 256
    backend: str = "file"
    limit_mib: int | None = None
    accelerator: str | None = None
    arguments: tuple[str, ...] = ()

    def as_machine(self) -> Machine:
        """How its QEMU is started."""
        disks = (argument for disk in self.disks for argument in disk.arguments())
        return Machine(
            binary=self.binary,
            machine=self.machine,
            ram_mib=self.ram_mib,
            backend=self.backend,
            accelerator=self.accelerator or linux_accelerator_for(self.binary),
            limit_bytes=None if self.limit_mib is None else self.limit_mib * MIB,
            arguments=(*boot_arguments(), *disks, *self.arguments),
        )


def boot_arguments() -> tuple[str, ...]:
    """QEMU's arguments that boot the kernel with our init."""
    kernel = cloud_kernel()
    return (
        *("-kernel", str(kernel.image), "-initrd", str(initramfs(kernel))),
        *("-append", " ".join(COMMAND_LINE)),
    )


@dataclass(frozen=True, slots=True)
class DiskCheck:
    """What the guest found in its page cache of one disk: blocks of 4 KiB cached, and bad ones."""

    cached: int
    bad: int


@dataclass(frozen=True, slots=True)
class MemoryCheck:
    """What the guest found in the memory that it writes, and the generation it had got to."""

    pages: int
    bad: int
    generation: int


@dataclass(frozen=True, slots=True)
class RecordCheck:
    """What the guest found of its records on the disk: places checked, bad ones since its start,
    and the number of the last record.
    """

    checked: int
    bad: int
    last: int


@dataclass(frozen=True, slots=True)
class WordReport:
    """The guest's latest report of the network: words echoed, said again, and echoed wrong."""

    words: int
    repeated: int
    bad: int


@dataclass(frozen=True, slots=True)
class DiskReport:
    """The guest's latest report on one disk it reads: blocks read and found bad since its start,
    whole passes, and the longest read in the 200 ms before the report.
    """

    blocks: int
    bad: int
    passes: int
    longest_us: int


class LinuxGuest(PairedGuest):
    """A running Linux guest: its QEMUs and what it says.

    LabError when it does not do as it is told, within its time.
    """

    def __init__(self, plan: LinuxPlan, folder: Path, stack: contextlib.ExitStack) -> None:
        self.plan = plan
        self.disks: dict[str, DiskReport] = {}
        self.words = WordReport(0, 0, 0)
        super().__init__(plan.as_machine(), folder, stack)

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until it has booted and knows its disks."""
        self._wait(lambda: self._said("READY ") is not None, timeout_s, "booted")

    def command(self, line: str, timeout_s: float = ANSWER_TIMEOUT_S) -> list[str]:
        """Have a command of ``init.c`` done, wherever the guest runs; all that it said till OK."""
        before = len(self.lines)
        self.write(f"{line}\n".encode())
        self._wait(lambda: self._said(f"OK {line}", before) is not None, timeout_s, f"done {line}")
        return self.lines[before:]

    def read_disks(self, **parameters: int) -> None:
        """Begin to read all disks; parameters as in ``init.c``. Reports come in :attr:`disks`."""
        words = [f"{name}={value}" for name, value in parameters.items()]
        self.disks.clear()
        self.command(" ".join(["read", *words]))

    def wait_blocks(self, count: int, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Wait until the guest has read that many blocks of each of its disks."""

        def enough() -> bool:
            reports = [self.disks.get(disk.name) for disk in self.plan.disks]
            return all(report is not None and report.blocks >= count for report in reports)

        self._wait(enough, timeout_s, f"read {count} blocks of each disk")

    def check_disks(self) -> dict[str, DiskCheck]:
        """Let the guest check all that its page cache holds of its disks, by the disk's name."""
        found = {}
        for line in self.command("check"):
            if line.startswith("CHECKED "):
                values = _fields(line)
                found[values["disk"]] = DiskCheck(int(values["cached"]), int(values["bad"]))
        return found

    def write_memory(self, **parameters: int) -> None:
        """Begin to rewrite memory in generations; parameters as in ``init.c``."""
        words = [f"{name}={value}" for name, value in parameters.items()]
        self.command(" ".join(["write", *words]))

    def verify_memory(self) -> MemoryCheck:
        """Let the guest verify all the memory that it writes."""
        lines = self.command("verify")
        values = _fields(next(line for line in lines if line.startswith("VERIFIED ")))
        return MemoryCheck(*(int(values[name]) for name in ("pages", "bad", "generation")))

    def write_records(self, **parameters: int) -> None:
        """Begin to write records to the writable disk; parameters as in ``init.c``."""
        self.command(
            " ".join(["record", *(f"{name}={value}" for name, value in parameters.items())])
        )

    def recall_records(self) -> RecordCheck:
        """Let the guest read all its records from the disk, and compare."""
        lines = self.command("recall")
        values = _fields(next(line for line in lines if line.startswith("RECORDS ")))
        return RecordCheck(*(int(values[name]) for name in ("checked", "bad", "last")))

    def talk(self, **parameters: int) -> None:
        """Begin to say words on the network; parameters as in ``init.c``. See :attr:`words`."""
        self.command(" ".join(["talk", *(f"{name}={value}" for name, value in parameters.items())]))

    def wait_words(self, count: int, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Wait until so many more words have been echoed."""
        before = self.words.words
        self._wait(lambda: self.words.words >= before + count, timeout_s, "been heard")

    def _said(self, beginning: str, start: int = 0) -> str | None:
        return next((line for line in self.lines[start:] if line.startswith(beginning)), None)

    def _trouble(self) -> str | None:
        signs = ("ERROR ", "Kernel panic", "BUG: ", "Oops")
        return next((line for line in self.lines if any(sign in line for sign in signs)), None)

    def _parse(self, _host_time_s: float, line: str) -> None:
        if not line.startswith("S "):
            self.lines.append(line)
        elif line.startswith("S disk="):
            values = _fields(line)
            self.disks[values["disk"]] = DiskReport(
                blocks=int(values["blocks"]),
                bad=int(values["bad"]),
                passes=int(values["passes"]),
                longest_us=int(values["longest_us"]),
            )
        elif line.startswith("S words="):
            values = _fields(line)
            self.words = WordReport(*(int(values[name]) for name in ("words", "repeated", "bad")))


@contextlib.contextmanager
def linux_guest(plan: LinuxPlan) -> Iterator[LinuxGuest]:
    """A Linux guest, started; both its QEMUs are ended and cleared away afterwards."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        yield LinuxGuest(plan, folder, stack)


@functools.cache
def linux_accelerator_for(binary: QemuBinary) -> str:
    """``kvm`` where this QEMU really boots a stock kernel with it, else ``tcg``.

    Some hosts' KVM runs small guests but hangs in a stock kernel's start.
    """
    accelerator = accelerator_for(binary)
    if accelerator != "kvm" or ACCELERATOR_VARIABLE in os.environ:
        return accelerator
    try:
        with linux_guest(LinuxPlan(binary, accelerator="kvm")) as guest:
            guest.wait_ready(KVM_BOOT_TIMEOUT_S)
    except LabError:
        return "tcg"
    return "kvm"


def _fields(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)
