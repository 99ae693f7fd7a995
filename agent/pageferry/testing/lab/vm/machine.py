"""The VM as a machine: Debian's newer cloud kernel in QEMU, its serial port, and swap on a disk.

Where KVM does not run such a kernel it runs under TCG, some ten times slower.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.cleanup import LabError, undone_by
from pageferry.testing.lab.linux_guest import COMMAND_LINE, linux_accelerator_for
from pageferry.testing.lab.packages import newer_cloud_kernel, qemu_10
from pageferry.testing.lab.programs import run

MIB = 1024 * 1024

MEMORY_MIB = 3072
PROCESSORS = 2
SWAP_BYTES = 4096 * MIB
"""Of a sparse file: what is not used costs nothing."""

COUNTED = ("-icount", "shift=3,sleep=on")
"""An emulated clock that counts instructions, 125 millions a second, as long as there are any to
do: about what TCG does. On a busy host the VM is then not slow by its own clock, and deadlines of
what is tested there mean the same as on an idle one. It takes one thread for all, so one processor.
"""

STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class VmResult:
    """How a command in a VM ended: its exit status, all that it and the kernel said, and how long
    it took from starting QEMU to its end.
    """

    status: int
    output: str
    seconds: float


def power_on(
    image: bytes,
    arguments: Sequence[str],
    scratch: Path,
    timeout_s: float,
    *,
    counted: bool = False,
) -> VmResult:
    """Boot with *image* as initramfs and *arguments* added, and wait until the VM is off.

    *counted*: under TCG with a clock that counts instructions (COUNTED).

    It must say ``VM ENDED status=N`` over its serial port before. LabError when it does not come
    up, or does not end in time, with the last it said. Files are left in *scratch*.
    """
    begin = time.monotonic()
    output = _boot(image, [*_machine(counted=counted), *arguments], scratch, timeout_s)
    ended = re.search(r"^VM ENDED status=(\d+)$", output, re.MULTILINE)
    if ended is None:
        raise LabError(f"the VM ended before its command did:\n{output[-3000:]}")
    return VmResult(int(ended[1]), output[: ended.start()], time.monotonic() - begin)


def disk(name: str, path: Path, *options: str) -> list[str]:
    """QEMU's arguments for a raw image as the next disk."""
    drive = ",".join([f"if=none,id={name},file={path},format=raw", *options])
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]


def swap_disk(scratch: Path) -> list[str]:
    """The same for a disk with swap on it, made in *scratch*."""
    path = scratch / "swap"
    with path.open("wb") as file:
        file.truncate(SWAP_BYTES)
    run("mkswap", "-q", str(path))
    return disk("swap", path, "cache=unsafe", "discard=unmap")


def _boot(image: bytes, arguments: Sequence[str], scratch: Path, timeout_s: float) -> str:
    initrd, serial = scratch / "initramfs", scratch / "serial"
    initrd.write_bytes(image)
    command = qemu_10().command(
        *arguments,
        *("-serial", f"file:{serial}"),
        *("-kernel", str(newer_cloud_kernel().image), "-initrd", str(initrd)),
        *("-append", " ".join(COMMAND_LINE)),
    )
    with _qemu(command, scratch / "qemu.log") as process:
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            said = serial.read_text(errors="replace")[-3000:]
            raise LabError(f"the VM did not end within {timeout_s} s:\n{said}") from None
    complaint = (scratch / "qemu.log").read_text(errors="replace").strip()
    if process.returncode or not serial.exists():
        raise LabError(f"the VM's QEMU ended with {process.returncode}: {complaint}")
    return serial.read_text(errors="replace").replace("\r", "")


def _machine(*, counted: bool) -> list[str]:
    accelerator = linux_accelerator_for(qemu_10())
    if accelerator != "tcg":
        processors = ["-accel", accelerator, "-smp", str(PROCESSORS)]
    elif counted:
        processors = ["-accel", "tcg,thread=single", "-smp", "1", *COUNTED]
    else:
        processors = ["-accel", "tcg,thread=multi", "-smp", str(PROCESSORS)]
    return [
        *("-machine", "q35,memory-backend=ram", *processors),
        # Without the fifth level of page tables: each walk of them costs under TCG.
        *("-cpu", "max,la57=off", "-m", f"{MEMORY_MIB}M"),
        # virtiofsd, where there is one, reads and writes the VM's memory by itself.
        *("-object", f"memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
    ]


@contextlib.contextmanager
def _qemu(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=qemu_10().full_environment(),
        )

    def end() -> None:
        process.kill()
        process.wait(STOP_TIMEOUT_S)

    with undone_by(end):
        yield process
