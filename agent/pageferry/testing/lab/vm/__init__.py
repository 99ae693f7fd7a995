"""A command run in a VM of this host's own files, under a kernel with cgroup version 2 only.

The VM is Debian's newer cloud kernel in QEMU. Its root is this host's, shared read-only by virtiofs
with an overlay in memory over it: programs, libraries, the checkout and its virtual environment are
found at their own paths, and what is written is gone with the VM. It has swap on a disk of its own.
Where KVM does not run such a kernel it runs under TCG, some ten times slower; a guest that is
started within it always does.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.cleanup import LabError, undone_by
from pageferry.testing.lab.hosts import scratch_folder
from pageferry.testing.lab.linux_guest import COMMAND_LINE, linux_accelerator_for
from pageferry.testing.lab.packages import newer_cloud_kernel, qemu_10
from pageferry.testing.lab.programs import run
from pageferry.testing.lab.vm.image import initramfs
from pageferry.testing.lab.vm.sharing import shared_root

MIB = 1024 * 1024

MEMORY_MIB = 3072
PROCESSORS = 2
SWAP_BYTES = 4096 * MIB
"""Of a sparse file: what is not used costs nothing."""

STOP_TIMEOUT_S = 10.0

SETTINGS = ("PATH", "HOME", "LANG")
"""Variables that the command has as this process has them, and all of pageferry's own."""

# What a running Debian has in place. Version 2's root hands both controllers down, as systemd does.
PREPARE = """
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo '+memory +cpu' >/sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
swapon /dev/vda
ulimit -c 0
"""


@dataclass(frozen=True, slots=True)
class VmResult:
    """How a command in a VM ended: its exit status, all that it and the kernel said, and how long
    it took from starting QEMU to its end.
    """

    status: int
    output: str
    seconds: float


def run_in_vm(
    command: Sequence[str],
    *,
    timeout_s: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> VmResult:
    """Run a command in `folder` in a VM of its own, as root, with `environment` added.

    LabError when the VM does not come up or does not end in time, with the last it said. Needs
    root: virtiofsd serves all users' files.
    """
    begin = time.monotonic()
    script = _script(command, folder or Path.cwd(), environment or {})
    with scratch_folder() as scratch:
        output = _boot(script, scratch, timeout_s)
    ended = re.search(r"^VM ENDED status=(\d+)$", output, re.MULTILINE)
    if ended is None:
        raise LabError(f"the VM ended before its command did:\n{output[-3000:]}")
    return VmResult(int(ended[1]), output[: ended.start()], time.monotonic() - begin)


def _script(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    names = [name for name in os.environ if name in SETTINGS or name.startswith("PAGEFERRY_")]
    variables = {name: os.environ[name] for name in names} | dict(environment)
    path = f"{variables.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"
    variables["PATH"] = path
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join(
        [
            "set -e",
            *lines,
            PREPARE,
            f"cd {shlex.quote(str(folder))}",
            f"exec {shlex.join(command)}",
        ]
    )


def _boot(script: str, scratch: Path, timeout_s: float) -> str:
    """Boot, and wait until the VM has switched itself off; what came over its serial port."""
    image, swap, serial = scratch / "initramfs", scratch / "swap", scratch / "serial"
    kernel = newer_cloud_kernel()
    image.write_bytes(initramfs(kernel, script))
    with swap.open("wb") as file:
        file.truncate(SWAP_BYTES)
    run("mkswap", "-q", str(swap))
    with shared_root(scratch) as socket_path:
        command = qemu_10().command(
            *_machine(socket_path),
            *("-drive", f"if=none,id=swap,file={swap},format=raw,cache=unsafe,discard=unmap"),
            *("-device", "virtio-blk-pci,drive=swap", "-serial", f"file:{serial}"),
            *("-kernel", str(kernel.image), "-initrd", str(image)),
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


def _machine(socket_path: Path) -> list[str]:
    return [
        *("-machine", "q35,memory-backend=ram", "-accel", _accelerator()),
        # Without the fifth level of page tables: each walk of them costs under TCG.
        *("-cpu", "max,la57=off", "-smp", str(PROCESSORS), "-m", f"{MEMORY_MIB}M"),
        # virtiofsd reads and writes the VM's memory by itself.
        *("-object", f"memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-chardev", f"socket,id=root,path={socket_path}"),
        *("-device", "vhost-user-fs-pci,chardev=root,tag=host,queue-size=1024"),
    ]


def _accelerator() -> str:
    found = linux_accelerator_for(qemu_10())
    return "tcg,thread=multi" if found == "tcg" else found


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
