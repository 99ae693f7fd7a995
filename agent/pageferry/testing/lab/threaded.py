"""A QEMU's threads in threaded cgroups of version 2, as libvirt puts them.

libvirt makes ``emulator``, ``vcpu0``, … below the cgroup of the guest and moves the threads there
(https://libvirt.org/cgroups.html). The guest's own cgroup thereby becomes the root of a threaded
subtree, which its memory is charged to and which a process from outside can still join
(Documentation/admin-guide/cgroup-v2.rst, "Threads").
"""

from __future__ import annotations

from pathlib import Path

from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.qemus import LabQemu

EMULATOR = "emulator"


def scatter_threads(qemu: LabQemu) -> Path:
    """Move each thread of a QEMU with a cgroup of version 2 to one of libvirt's kind.

    Returns the cgroup's name as the kernel now gives it for the process. The cgroups go with that
    of the QEMU. LabError when the kernel does not do as it is told.
    """
    group = qemu.cgroup
    if group is None or group.version != 2:
        raise LabError("only a QEMU in a memory cgroup of version 2 has threads in cgroups")
    vcpus = {thread: f"vcpu{number}" for number, thread in enumerate(qemu.vcpu_threads())}
    try:
        for name in (EMULATOR, *vcpus.values()):
            (group.path / name).mkdir()
            (group.path / name / "cgroup.type").write_text("threaded")
        (group.path / "cgroup.subtree_control").write_text("+cpu")
        for thread in map(int, _names(Path(f"/proc/{qemu.pid}/task"))):
            folder = group.path / vcpus.get(thread, EMULATOR)
            (folder / "cgroup.threads").write_text(str(thread))
    except OSError as error:
        raise LabError(f"threads of QEMU stay out of their cgroups: {error}") from error
    return Path(Path(f"/proc/{qemu.pid}/cgroup").read_text().strip().rpartition(":")[2])


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]
