"""Booting a kernel in QEMU, without KVM, and reading what the guest reported.

The guest's console is the report: init says which program runs and how it ended, the programs write
TAP, and the kernel its complaints. QEMU's exit status tells nothing; a last line does.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from pageferry.testing.lab.packages import QemuBinary

MEMORY_MIB = 1024
KERNEL_ARGUMENTS = "console=ttyS0 quiet loglevel=5 panic=-1 reboot=t"
TIMEOUT_S = 900
"""A boot with all tests takes 20 s alone, some times that with the kernel's own checks."""

COMPLAINT = re.compile(
    r"WARNING: |BUG: |KASAN|UBSAN|Kernel panic|Oops|general protection fault"
    r"|INFO: (possible|inconsistent|suspicious|task |rcu)|Call Trace"
)


class BootError(Exception):
    """A guest did not come to its end; the message holds its last lines."""


@dataclass(slots=True)
class ProgramReport:
    """What one program of the guest reported: TAP, and how it ended."""

    name: str
    lines: list[str] = field(default_factory=list)
    ended: str = ""

    @property
    def passed(self) -> list[str]:
        """Names of the checks that passed."""
        return self._results(r"ok \d+ (?!.*# SKIP)")

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return self._results(r"not ok \d+ ")

    @property
    def skipped(self) -> list[str]:
        """Names of the checks that could not be made."""
        return self._results(r"ok \d+ (?=.*# SKIP)")

    def _results(self, pattern: str) -> list[str]:
        return [
            re.sub(r"^- |# SKIP ?", "", line[found.end() :]).strip()
            for line in self.lines
            if (found := re.match(pattern, line))
        ]


@dataclass(slots=True)
class GuestReport:
    """All that a guest said."""

    programs: dict[str, ProgramReport]
    complaints: list[str]
    """Lines of the kernel that mean that something is wrong with it."""
    console: str

    def program(self, name: str) -> ProgramReport:
        """The report of one program, by the last part of its name. BootError when it never ran."""
        if name not in self.programs:
            raise BootError(f"the guest never ran {name}:\n{self.console[-2000:]}")
        return self.programs[name]


def boot(
    qemu: QemuBinary,
    kernel: Path,
    image: Path,
    *,
    count_instructions: bool = False,
    timeout_s: int = TIMEOUT_S,
) -> GuestReport:
    """Boot and wait for the guest to restart. Raises BootError when it does not come that far.

    *count_instructions*: one processor, and a clock that moves a nanosecond with each instruction.
    """
    machine = ["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", str(MEMORY_MIB)]
    if count_instructions:
        machine += ["-smp", "1", "-icount", "shift=0,sleep=off"]
    else:
        # Without ACPI the kernel finds the second processor only as a second socket.
        machine += ["-smp", "2,sockets=2,cores=1"]
    command = qemu.command(
        *machine,
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(kernel), "-initrd", str(image), "-append", KERNEL_ARGUMENTS),
    )
    try:
        done = subprocess.run(
            command,
            env=qemu.full_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = (error.output or b"").decode("utf-8", "replace")
        raise BootError(f"the guest did not end within {timeout_s} s:\n{said[-2000:]}") from error
    console = done.stdout.decode("utf-8", "replace").replace("\r", "")
    report = read_console(console)
    if "GUEST DONE" not in console:
        raise BootError(f"the guest did not come to its end:\n{console[-2000:]}")
    return report


def read_console(console: str) -> GuestReport:
    """Take a guest's console apart."""
    report = GuestReport(programs={}, complaints=[], console=console)
    running: ProgramReport | None = None
    for line in console.split("\n"):
        if started := re.match(r"GUEST RUNS: (\S+)", line):
            running = ProgramReport(Path(started[1]).name)
            report.programs[running.name] = running
        elif ended := re.match(r"GUEST RAN: \S+: (.*)", line):
            if running is not None:
                running.ended = ended[1]
            running = None
        elif COMPLAINT.search(line):
            report.complaints.append(line)
        elif running is not None:
            running.lines.append(line)
    return report
