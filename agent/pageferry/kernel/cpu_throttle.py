"""Taking time from a guest's vCPUs: a cgroup with a CPU quota, below the one that they are in.

The vCPU threads move one level down and nothing else changes: limits that someone else has set
above them stay in force (sched-bwc.rst: a group has what it and all above it have), and giving the
time back is moving them up again. Version 1: any child of the cpu hierarchy takes threads
(``tasks``). Version 2: a threaded child (cgroup-v2.rst, "Threads"), as libvirt makes them too.

What is ours is known by its name, so anyone can undo it: the guard of a dead worker, the next
migration, `recover`. Standard library only: the guard is to be small and start quickly.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pageferry.kernel.cgroup import locate
from pageferry.model.errors import KernelFeatureError

PREFIX = "pageferry-throttle-"

ENABLED_SUFFIX = ".cpu"
"""Ends the name when the cpu controller was not handed down before: then it is taken back."""

SHORT_PERIOD_US = 10_000
"""The guest is held up for most of a period at a time, and QEMU with it when the vCPU holds its
lock: 10 ms is short, and the least quota (1 ms) still allows 10 % of one CPU."""

LONGEST_PERIOD_US = 100_000
LEAST_QUOTA_US = 1_000

WEIGHT_V1, WEIGHT_V2 = 1024, 100
"""cpu.shares and cpu.weight of one thread beside a group of one."""

REMOVE_TRIES = 50


def quota_us(cpus: float, percent: int) -> tuple[int, int]:
    """Quota and period, in microseconds, that leave 100 − *percent* of *cpus* processors.

    The shortest period of 10 to 100 ms for which the quota is not below 1 ms.
    """
    left = cpus * (100 - percent) / 100
    period = min(LONGEST_PERIOD_US, max(SHORT_PERIOD_US, round(LEAST_QUOTA_US / left)))
    return max(LEAST_QUOTA_US, int(left * period)), period


class VcpuThrottle:
    """The vCPU threads of one QEMU, in cgroups of ours. Blocking, but for no longer than ms."""

    def __init__(self, pid: int, threads: Sequence[int], label: str) -> None:
        """*label* makes the cgroup's name: letters and digits. Nothing is changed yet."""
        self._pid = pid
        self._threads = tuple(threads)
        self._name = PREFIX + label
        self._cgroups: dict[Path, tuple[int, list[int]]] = {}

    def enter(self) -> None:
        """Move the threads into new cgroups, without a quota yet.

        Raises KernelFeatureError, with nothing changed, where this host does not allow it.
        """
        try:
            for thread in self._threads:
                folder = Path(f"/proc/{self._pid}/task/{thread}/cgroup")
                version, parent, _mount = locate(folder, "cpu")
                if parent.name.startswith(PREFIX):
                    raise KernelFeatureError(f"{parent} is left over from another migration")
                self._cgroups.setdefault(parent, (version, []))[1].append(thread)
            for parent in list(self._cgroups):
                self._make(parent)
        except (OSError, KernelFeatureError) as error:
            self.leave()
            raise KernelFeatureError(
                f"the guest's vCPU threads cannot be given a CPU quota: {error}",
                advice="let pageferryd write to the cpu cgroup of the guest's QEMU; with systemd,"
                " keep /sys/fs/cgroup writable for it",
            ) from error

    def set(self, percent: int) -> None:
        """Take *percent* (1 to 99) of what the threads could have. Raises OSError."""
        for parent, (version, threads) in self._cgroups.items():
            cpus = min(float(len(threads)), _cpus_of(parent, version))
            quota, period = quota_us(cpus, percent)
            child = self._child(parent)
            if version == 1:
                # With the quota lifted meanwhile, since each value is checked against the others.
                (child / "cpu.cfs_quota_us").write_text("-1")
                (child / "cpu.cfs_period_us").write_text(str(period))
                (child / "cpu.cfs_quota_us").write_text(str(quota))
            else:
                (child / "cpu.max").write_text(f"{quota} {period}")

    def leave(self) -> None:
        """Move the threads back and remove the cgroups. Idempotent."""
        undo_throttle(self._pid)
        for parent in self._cgroups:
            _remove_all(parent)
        self._cgroups.clear()

    def _make(self, parent: Path) -> None:
        version, threads = self._cgroups[parent]
        if version == 2 and "cpu" not in (parent / "cgroup.controllers").read_text().split():
            raise KernelFeatureError(f"{parent} is not given the cpu controller")
        handed_down = version == 1 or "cpu" in (
            (parent / "cgroup.subtree_control").read_text().split()
        )
        child = parent / (self._name if handed_down else self._name + ENABLED_SUFFIX)
        child.mkdir()
        if version == 1:
            # The group competes with QEMU's other threads as a whole.
            (child / "cpu.shares").write_text(str(min(262_144, WEIGHT_V1 * len(threads))))
        else:
            (child / "cgroup.type").write_text("threaded")
            if not handed_down:
                (parent / "cgroup.subtree_control").write_text("+cpu")
            (child / "cpu.weight").write_text(str(min(10_000, WEIGHT_V2 * len(threads))))
        for thread in threads:
            _move(child, version, thread)

    def _child(self, parent: Path) -> Path:
        plain = parent / self._name
        return plain if plain.exists() else parent / (self._name + ENABLED_SUFFIX)


def undo_throttle(pid: int) -> bool:
    """Give the threads of process *pid* back what any throttle of ours took. Idempotent.

    Returns whether there was one. Never raises: a process that has ended needs nothing.
    """
    found: dict[Path, int] = {}
    for _again in range(2):
        # A thread that a throttled one starts meanwhile begins in its cgroup.
        for thread in _threads_of(pid):
            with suppress(OSError, KernelFeatureError):
                version, folder, _ = locate(Path(f"/proc/{pid}/task/{thread}/cgroup"), "cpu")
                if folder.name.startswith(PREFIX):
                    found[folder] = version
                    _move(folder.parent, version, thread)
    for folder in found:
        _remove(folder)
    return bool(found)


def remove_throttle(label: str) -> bool:
    """Remove the cgroups of a throttle whose threads have all ended. Idempotent; never raises.

    Returns whether there were any. Looks through all cpu cgroups that this process sees: which one
    its QEMU was in is not known any more.
    """
    removed = False
    with suppress(OSError, KernelFeatureError):
        _version, _own, mount = locate(Path("/proc/self/cgroup"), "cpu")
        for folder, names, _files in os.walk(mount):
            for name in names:
                if name in (PREFIX + label, PREFIX + label + ENABLED_SUFFIX):
                    _remove(Path(folder, name))
                    removed = True
    return removed


def _threads_of(pid: int) -> Iterable[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _move(folder: Path, version: int, thread: int) -> None:
    (folder / ("tasks" if version == 1 else "cgroup.threads")).write_text(str(thread))


def _remove_all(parent: Path) -> None:
    """Cgroups of ours below *parent* that are empty; those of other migrations are not."""
    with suppress(OSError):
        for name in os.listdir(parent):
            if name.startswith(PREFIX):
                _remove(parent / name, tries=1)


def _remove(folder: Path, tries: int = REMOVE_TRIES) -> None:
    for _try in range(tries):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            # The thread is on its way out of it.
            time.sleep(0.01)
        else:
            if folder.name.endswith(ENABLED_SUFFIX):
                with suppress(OSError):
                    (folder.parent / "cgroup.subtree_control").write_text("-cpu")
            return


def _cpus_of(folder: Path, version: int) -> float:
    """Processors that *folder* may use at most, by its own quota."""
    cpus = float(os.cpu_count() or 1)
    with suppress(OSError, ValueError):
        if version == 1:
            quota = int((folder / "cpu.cfs_quota_us").read_text())
            period = int((folder / "cpu.cfs_period_us").read_text())
        else:
            first, second = (folder / "cpu.max").read_text().split()
            quota, period = (-1 if first == "max" else int(first)), int(second)
        if quota > 0:
            cpus = min(cpus, quota / period)
    return cpus
