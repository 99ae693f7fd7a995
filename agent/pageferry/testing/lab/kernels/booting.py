"""Booting a kernel in QEMU, without KVM, and reading what the guest reported.

The guest's console is the report: init says which program runs and how it ended, the programs write
TAP, and the kernel its complaints. QEMU's exit status tells nothing; a last line does.

A guest is given up when it has said nothing for too long, not when it has taken long: an emulated
processor on a busy machine may be ten times as slow as on another.
"""

from __future__ import annotations

import os
import re
import selectors
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.patience import patient

MEMORY_MIB = 1024
KERNEL_ARGUMENTS = " ".join(
    (
        "console=ttyS0 quiet loglevel=5 panic=-1 reboot=t",
        # That the machine leaves a processor alone for a minute is no fault of the guest's kernel.
        "rcupdate.rcu_cpu_stall_timeout=300",
        # Two disks in memory, each bio done when submitted; ignored where the driver is not there.
        "null_blk.nr_devices=2 null_blk.gb=1 null_blk.bs=4096 null_blk.memory_backed=1",
        "null_blk.queue_mode=0 null_blk.irqmode=0",
    )
)

POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Waits:
    """When a guest is given up."""

    silence_s: float = 900.0
    """So long it has said nothing. The longest silence of a good one is some seconds on an idle
    machine, and some times that with the kernel's own checks."""
    total_s: float = 7200.0
    """So long it has run."""


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
    locks_checked: bool = False
    """Whether the kernel was still checking its locks when all was done: it stops at a fault."""
    ran_s: float = 0.0
    longest_silence_s: float = 0.0

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
    memory_mib: int = MEMORY_MIB,
    waits: Waits | None = None,
) -> GuestReport:
    """Boot and wait for the guest to restart. Raises BootError when it does not come that far.

    *count_instructions*: one processor, and a clock that moves a nanosecond with each instruction.
    """
    machine = ["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", str(memory_mib)]
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
    with subprocess.Popen(
        command,
        env=qemu.full_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            said, ran_s, silence_s = _listen(process, waits or Waits())
        finally:
            process.kill()
    report = read_console(said)
    report.ran_s, report.longest_silence_s = ran_s, silence_s
    if "GUEST DONE" not in said:
        raise BootError(f"the guest did not come to its end:\n{said[-2000:]}")
    return report


def _listen(process: subprocess.Popen[bytes], waits: Waits) -> tuple[str, float, float]:
    """The console until QEMU ends, how long that took, and the longest silence in it.

    Waits are counted, not read from a clock: what a machine is stopped for is no silence.
    Raises BootError when the guest is given up.
    """
    assert process.stdout is not None
    said = bytearray()
    ran_s = silent_s = longest_s = 0.0
    limit_s, total_s = patient(waits.silence_s), patient(waits.total_s)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while silent_s < limit_s and ran_s < total_s:
            began = os.times().elapsed
            ready = selector.select(POLL_S)
            waited_s = min(os.times().elapsed - began, POLL_S)
            ran_s += waited_s
            silent_s += waited_s
            longest_s = max(longest_s, silent_s)
            if not ready:
                continue
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                return _text(said), ran_s, longest_s
            said += part
            silent_s = 0.0
    what = f"said nothing for {limit_s:.0f}" if silent_s >= limit_s else f"ran for {total_s:.0f}"
    raise BootError(f"the guest {what} s and was given up:\n{_text(said)[-2000:]}")


def _text(said: bytearray) -> str:
    return said.decode("utf-8", "replace").replace("\r", "")


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
        elif line == "GUEST CHECKS LOCKS":
            report.locks_checked = True
        elif COMPLAINT.search(line):
            report.complaints.append(line)
        elif running is not None:
            running.lines.append(line)
    return report
