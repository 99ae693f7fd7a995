"""A libvirtd of the lab's own: Debian's, in system mode, in a mount namespace of its own.

It believes in the paths that it was built with, and runs QEMU by them. So it gets them all in its
namespace: the unpacked packages laid over /usr and /etc, a /var that forgets, an empty /run, no
cgroups. Nothing of it is seen from outside but its processes, sockets in the lab's folder, and
guest RAM in a folder of /dev/shm, and all of that is cleared away at the end.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.cleanup import LabError, lab_name, left_by_the_dead, undone_by
from pageferry.testing.lab.hosts import SHM
from pageferry.testing.lab.packages import libvirt
from pageferry.testing.lab.patience import patient
from pageferry.testing.lab.programs import end

START_TIMEOUT_S = patient(60.0)
"""It starts QEMU to see what that can do, which takes some seconds."""

STOP_TIMEOUT_S = patient(20.0)

ENTER = """
set -e
root=$0 layers=$1/layers ram=$2
mount -t tmpfs tmpfs "$layers"
mkdir "$layers"/{etc,var,etc.work,var.work}
lay() { # lay LOWER AT
    local here=$layers$2
    mount -t overlay overlay -o lowerdir="$1",upperdir="$here",workdir="$here.work" "$2"
}
mount -t overlay overlay -o lowerdir="$root/usr:/usr" /usr
lay "$root/etc:/etc" /etc
lay /var /var
mount -t tmpfs tmpfs /run
umount -R -l /sys/fs/cgroup
echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' >>/etc/passwd
echo 'libvirt-qemu:x:64055:' >>/etc/group
getent group kvm >/dev/null || echo 'kvm:x:64056:' >>/etc/group
cat >/etc/libvirt/qemu.conf <<CONF
user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
namespaces = []
stdio_handler = "file"
memory_backing_dir = "$ram"
CONF
cat >/etc/libvirt/libvirtd.conf <<CONF
auth_unix_rw = "none"
log_outputs = "3:stderr"
CONF
exec libvirtd -f /etc/libvirt/libvirtd.conf
"""


@dataclass(slots=True)
class LabLibvirtd:
    """One running libvirtd, as if on a host of its own."""

    name: str
    folder: Path
    ram_folder: Path
    process: subprocess.Popen[bytes]

    def virsh(self, *words: str) -> str:
        """What a virsh command prints. LabError with what it said when it fails."""
        done = self._virsh(*words)
        if done.returncode:
            raise LabError(f"virsh {shlex.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def define(self, xml: str) -> None:
        """Define a domain."""
        path = self.folder / "domain.xml"
        path.write_text(xml)
        self.virsh("define", str(path))

    def state(self, domain: str) -> str:
        """What it takes the domain's state for, with the reason: ``running (booted)``."""
        return self.virsh("domstate", domain, "--reason")

    def log(self) -> str:
        """What it said."""
        return (self.folder / "libvirtd.log").read_text(errors="replace")

    def _virsh(self, *words: str) -> subprocess.CompletedProcess[str]:
        inside = ("nsenter", "--mount", f"--target={self.process.pid}")
        return subprocess.run(
            [*inside, "virsh", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=START_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        """End its domains and then it; the domains by force when it is gone itself."""
        if self.process.poll() is None:
            for domain in self._virsh("list", "--name").stdout.split():
                self._virsh("destroy", domain)
        end(self.process, STOP_TIMEOUT_S)
        for pid in self._qemus():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.ram_folder, ignore_errors=True)

    def _qemus(self) -> list[int]:
        """QEMUs with RAM in our folder: libvirtd leaves its domains alone when it ends."""
        found = []
        for each in Path("/proc").iterdir():
            if each.name.isdecimal():
                with contextlib.suppress(OSError):
                    if str(self.ram_folder).encode() in (each / "cmdline").read_bytes():
                        found.append(int(each.name))
        return found


@contextlib.contextmanager
def run_libvirtd(name: str, folder: Path) -> Iterator[LabLibvirtd]:
    """A libvirtd with files in `folder`, made here; ended with its domains. LabError with its log
    when it does not start. Needs root."""
    root = libvirt()
    for other in os.listdir(SHM):
        if left_by_the_dead(other) and (SHM / other).is_dir():
            shutil.rmtree(SHM / other, ignore_errors=True)
    folder.mkdir()
    (folder / "layers").mkdir()
    ram_folder = SHM / lab_name(f"libvirt-{name}")
    ram_folder.mkdir()
    with (folder / "libvirtd.log").open("wb") as log:
        # A network namespace, too: it looks at all interfaces and may want to change some.
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "--net", "bash", "-c", ENTER),
                *(str(root), str(folder), str(ram_folder)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    daemon = LabLibvirtd(name, folder, ram_folder, process)
    with undone_by(daemon.stop):
        _wait_until_it_answers(daemon)
        yield daemon


def _wait_until_it_answers(daemon: LabLibvirtd) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while daemon._virsh("version").returncode:
        if daemon.process.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"libvirtd ({daemon.name}) did not start: {daemon.log()[-2000:]}")
        time.sleep(0.2)
