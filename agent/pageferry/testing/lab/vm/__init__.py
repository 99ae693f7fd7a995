"""A command run in a VM of this host's own files, under a kernel with cgroup version 2 only.

The VM's root is this host's, shared read-only by virtiofs with an overlay in memory over it:
programs, libraries, the checkout and its virtual environment are found at their own paths, and what
is written is gone with the VM. It has swap on a disk of its own. A VM with a Debian of its own, and
systemd, is in ``debian.py``.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pageferry.testing.lab.hosts import scratch_folder
from pageferry.testing.lab.packages import newer_cloud_kernel
from pageferry.testing.lab.vm.image import initramfs
from pageferry.testing.lab.vm.machine import VmResult, power_on, swap_disk
from pageferry.testing.lab.vm.sharing import shared_root

__all__ = ["VmResult", "run_in_vm"]

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
    script = _script(command, folder or Path.cwd(), environment or {})
    with scratch_folder() as scratch, shared_root(scratch) as socket_path:
        share = [
            *("-chardev", f"socket,id=root,path={socket_path}"),
            *("-device", "vhost-user-fs-pci,chardev=root,tag=host,queue-size=1024"),
        ]
        image = initramfs(newer_cloud_kernel(), script)
        return power_on(image, [*share, *swap_disk(scratch)], scratch, timeout_s)


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
