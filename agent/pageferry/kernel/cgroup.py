"""The memory cgroup that a process is charged to, of version 1 or 2.

Shmem is charged to the cgroup of whoever allocates it first, so whoever receives a guest's RAM
joins the cgroup of its QEMU; and what is paged in on the source counts against the guest's own
limit, so its headroom bounds the page-in window.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pageferry.model.errors import KernelFeatureError

NO_LIMIT_BYTES = 1 << 62
"""Version 1 has no word for "no limit" but the largest page counter, 2^63 less a page."""


@dataclass(frozen=True, slots=True)
class MemoryCgroup:
    """A memory cgroup: ``path`` is its directory, ``mount`` that of the topmost one visible."""

    version: int
    path: Path
    mount: Path

    def usage_bytes(self) -> int:
        """What is charged to it and its descendants, page cache included.

        Where its parent does not hand the memory controller down: what is charged to the nearest
        ancestor that has it, as the kernel does.
        """
        for folder in self._lineage():
            with suppress(FileNotFoundError):
                return self._usage_of(folder)
        return 0

    def limit_bytes(self) -> int | None:
        """The lowest limit of it and its ancestors; None when there is none.

        Of version 2's two limits (memory.high, memory.max) the lower: reclaim begins at either.
        """
        limits = (self._limit_of(folder) for folder in self._lineage())
        return min((limit for limit in limits if limit is not None), default=None)

    def headroom_bytes(self) -> int | None:
        """What can still be charged before it or an ancestor is full; None: no limit."""
        headrooms = []
        for folder in self._lineage():
            limit = self._limit_of(folder)
            if limit is not None:
                headrooms.append(max(0, limit - self._usage_of(folder)))
        return min(headrooms, default=None)

    def swap_limit_bytes(self) -> int | None:
        """The most that it may have in swap, by its own limits and its ancestors'; None: no limit.

        Version 1 limits memory and swap together: what that leaves beyond the limit on memory.
        """
        limits = (self._swap_limit_of(folder) for folder in self._lineage())
        return min((limit for limit in limits if limit is not None), default=None)

    def join(self, pid: int) -> None:
        """Move process *pid* in. What it was charged before stays where it was.

        Raises KernelFeatureError when that is not permitted.
        """
        try:
            (self.path / "cgroup.procs").write_text(f"{pid}\n")
        except OSError as error:
            raise KernelFeatureError(
                f"process {pid} cannot join the memory cgroup {self.path}: {error.strerror}",
                advice="run pageferryd as root, outside a cgroup namespace; with systemd, keep"
                " /sys/fs/cgroup writable for it",
            ) from error

    def stat(self) -> dict[str, int]:
        """memory.stat: bytes and counts by name; the names differ between the versions."""
        lines = (self.path / "memory.stat").read_text().splitlines()
        return {name: int(value) for name, value in (line.split() for line in lines)}

    def _lineage(self) -> list[Path]:
        """This cgroup and its ancestors, up to the topmost one visible."""
        folders = [self.path]
        while folders[-1] != self.mount:
            folders.append(folders[-1].parent)
        return folders

    def _usage_of(self, folder: Path) -> int:
        name = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        return int((folder / name).read_text())

    def _limit_of(self, folder: Path) -> int | None:
        names = ["memory.limit_in_bytes"] if self.version == 1 else ["memory.max", "memory.high"]
        limits = (_limit_in(folder / name) for name in names)
        return min((limit for limit in limits if limit is not None), default=None)

    def _swap_limit_of(self, folder: Path) -> int | None:
        if self.version == 2:
            return _limit_in(folder / "memory.swap.max")
        both = _limit_in(folder / "memory.memsw.limit_in_bytes")
        if both is None:
            return None
        return max(0, both - (_limit_in(folder / "memory.limit_in_bytes") or 0))


def _limit_in(path: Path) -> int | None:
    """The limit in a file of either version; None where there is none.

    The root cgroup of version 2 has no such files, nor has one whose parent does not hand memory
    down; version 1 counts swap only where the kernel was told to.
    """
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    return None if text == "max" or int(text) >= NO_LIMIT_BYTES else int(text)


def memory_cgroup_of(pid: int, proc: Path = Path("/proc")) -> MemoryCgroup:
    """The memory cgroup of process *pid*, found through its cgroup file and our mounts.

    Raises KernelFeatureError when the hierarchy is not mounted here, or the process is outside of
    what is mounted. *proc* is another /proc for tests.
    """
    version, path, mount = locate(proc / str(pid) / "cgroup", "memory", proc)
    return MemoryCgroup(version, _domain_of(path, mount), mount)


def memory_cgroup_named(name: str) -> MemoryCgroup:
    """The memory cgroup *name* (as in ``/machine.slice/web1``) under the hierarchy's mount point,
    which need not exist.

    Raises KernelFeatureError when the hierarchy is not mounted here.
    """
    ours = memory_cgroup_of(os.getpid())
    return MemoryCgroup(ours.version, ours.mount / name.strip("/"), ours.mount)


def locate(
    cgroup_file: Path, controller: str, proc: Path = Path("/proc")
) -> tuple[int, Path, Path]:
    """Where the cgroup of a process or thread is, by its *cgroup_file* in /proc.

    For the hierarchy that has *controller*: its version, the cgroup's folder, and the mount point
    above it. Raises KernelFeatureError when that is not mounted here, or the process is outside of
    what is mounted; OSError when the process is gone.
    """
    version, name = _membership(cgroup_file.read_text(), controller)
    for mount, root in _mounts((proc / "self" / "mountinfo").read_text(), version, controller):
        relative = os.path.relpath(name, root)
        if relative == "." or not relative.startswith(".."):
            return version, mount / relative if relative != "." else mount, mount
    raise KernelFeatureError(
        f"the {controller} cgroup {name} (version {version}) of {cgroup_file} is not mounted here",
        advice="mount it under /sys/fs/cgroup, and run pageferryd outside a cgroup namespace",
    )


def _domain_of(path: Path, mount: Path) -> Path:
    """The cgroup that memory is charged to, with its limits and figures.

    libvirt puts QEMU's threads into threaded cgroups of version 2 (emulator, vcpu0, …). Memory
    belongs to the domain above them (cgroup-v2.rst, "Threads"), which alone has memory's files. A
    process that joins the domain does not share what is set for QEMU's threads, such as their
    processor time; the kernel would let it join a threaded one as well.
    """
    while path != mount:
        try:
            kind = (path / "cgroup.type").read_text().strip()
        except FileNotFoundError:  # version 1
            return path
        if kind != "threaded":
            return path
        path = path.parent
    return path


def _membership(text: str, controller: str) -> tuple[int, str]:
    """Version and name of the cgroup: version 1 where the controller is bound to that."""
    unified = None
    for line in text.splitlines():
        _, controllers, name = line.split(":", 2)
        if controller in controllers.split(","):
            return 1, name
        if not controllers:
            unified = name
    if unified is None:
        raise KernelFeatureError(
            f"this kernel has no {controller} cgroups",
            advice=f"boot with cgroup_enable={controller}",
        )
    return 2, unified


def _mounts(text: str, version: int, controller: str) -> list[tuple[Path, str]]:
    """Mount points of the hierarchy that holds the controller, each with its root in it."""
    found = []
    for line in text.splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _source, options = tail.split(" ", 2)
        is_v1 = kind == "cgroup" and controller in options.split(",")
        is_v2 = kind == "cgroup2"
        if is_v1 if version == 1 else is_v2:
            root, mount = (_unescape(field) for field in fields.split()[3:5])
            found.append((Path(mount), root))
    return found


def _unescape(field: str) -> str:
    """mountinfo writes blanks, tabs, newlines and backslashes in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
