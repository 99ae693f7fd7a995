"""Cgroups of the lab's own, for memory or for disk reads, version 1 or 2, whichever this host has.

Version 1: a folder under the controller's mount. Version 2: a folder under the unified mount, whose
root must hand the controller down (systemd's does for memory). A controller has a name in each.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.cleanup import LabError, lab_name, left_by_the_dead, undone_by
from pageferry.testing.lab.patience import patient

REMOVE_TIMEOUT_S = patient(10.0)
"""A process that was killed leaves its cgroup only when its memory is freed."""

RELIMIT_TIMEOUT_S = patient(20.0)
"""Reclaim gives up where the kernel's statistics are too old to show what could go; they are
renewed every 2 to 4 s."""

UNLIMITED = -1

MEMORY = ("memory", "memory")
DISK = ("blkio", "io")
"""A controller's names, in version 1 and in version 2."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A controller's mount point and its version."""

    version: int
    mount: Path


@dataclass(frozen=True, slots=True)
class LabCgroup:
    """One memory cgroup that the lab made."""

    version: int
    path: Path

    def set_limit(self, limit_bytes: int | None) -> None:
        """Set the hard limit; None lifts it. Lowering reclaims, with OSError EBUSY if it cannot."""
        if self.version == 1:
            text = str(UNLIMITED if limit_bytes is None else limit_bytes)
            (self.path / "memory.limit_in_bytes").write_text(text)
            return
        text = "max" if limit_bytes is None else str(limit_bytes)
        # memory.max ends processes where reclaim falls short; memory.high only reclaims.
        (self.path / "memory.high").write_text(text)
        if limit_bytes is not None and self.usage_bytes() > limit_bytes:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        (self.path / "memory.max").write_text(text)
        (self.path / "memory.high").write_text("max")

    @contextlib.contextmanager
    def unlimited(self, limit_bytes: int) -> Iterator[None]:
        """Without its limit within the block, and back at it afterwards. OSError EBUSY when
        reclaim does not get there within `RELIMIT_TIMEOUT_S`.
        """
        self.set_limit(None)
        try:
            yield
        finally:
            self._lower_to(limit_bytes)

    def _lower_to(self, limit_bytes: int) -> None:
        deadline = time.monotonic() + RELIMIT_TIMEOUT_S
        while True:
            try:
                self.set_limit(limit_bytes)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def forbid_swap(self) -> None:
        """From now on reclaim may not swap out what is charged here."""
        if self.version == 1:
            (self.path / "memory.swappiness").write_text("0")
        else:
            (self.path / "memory.swap.max").write_text("0")

    def usage_bytes(self) -> int:
        """What is charged now, page cache and shmem included."""
        name = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        return int((self.path / name).read_text())

    def stat(self) -> dict[str, int]:
        """memory.stat; the names differ between the versions."""
        lines = (self.path / "memory.stat").read_text().splitlines()
        return {name: int(value) for name, value in (line.split() for line in lines)}

    def join(self, pid: int) -> None:
        """Move a whole process here. Its memory stays charged where it is."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def pids(self) -> list[int]:
        """The processes in it."""
        return [int(word) for word in (self.path / "cgroup.procs").read_text().split()]

    def command(self, command: list[str]) -> list[str]:
        """A command line that runs `command` in this cgroup from its first instruction on."""
        enter = 'echo $$ > "$0" && exec "$@"'
        return ["sh", "-c", enter, str(self.path / "cgroup.procs"), *command]


def hierarchy(controller: tuple[str, str] = MEMORY) -> Hierarchy:
    """Where this host has a controller mounted. LabError when it has it not."""
    old_name, new_name = controller
    unified: Path | None = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        mount = Path(fields.split()[4])
        kind, _, options = tail.split(maxsplit=2)
        if kind == "cgroup" and old_name in options.split(","):
            return Hierarchy(version=1, mount=mount)
        if kind == "cgroup2":
            unified = mount
    if unified is not None and new_name in (unified / "cgroup.controllers").read_text().split():
        return Hierarchy(version=2, mount=unified)
    raise LabError(f"no {new_name} cgroup controller is mounted: mount cgroup2 on /sys/fs/cgroup")


@contextlib.contextmanager
def memory_cgroup(what: str, limit_bytes: int | None = None) -> Iterator[LabCgroup]:
    """A new memory cgroup with this limit; removed at the end.

    Its processes must have ended by then (LabError otherwise). Needs root.
    """
    with _new_group(what, MEMORY) as (version, path):
        group = LabCgroup(version=version, path=path)
        if limit_bytes is not None:
            group.set_limit(limit_bytes)
        yield group


@dataclass(frozen=True, slots=True)
class DiskCgroup:
    """A cgroup that limits how its processes read from disks."""

    version: int
    path: Path

    def limit_reads(self, device: Path, per_second: int) -> None:
        """Let no more than this many read requests a second through to a block device.

        What comes sooner waits in the kernel below whoever submitted it, its memory pinned.
        """
        number = os.stat(device).st_rdev
        name = f"{os.major(number)}:{os.minor(number)}"
        if self.version == 1:
            text = f"{name} {per_second}"
            (self.path / "blkio.throttle.read_iops_device").write_text(text)
        else:
            (self.path / "io.max").write_text(f"{name} riops={per_second}")

    def join(self, pid: int) -> None:
        """Move a whole process here; its reads from now on are limited."""
        (self.path / "cgroup.procs").write_text(str(pid))


@contextlib.contextmanager
def disk_cgroup(what: str) -> Iterator[DiskCgroup]:
    """A new cgroup without limits for disk reads; removed at the end. Needs root.

    Its processes must have ended by then. With version 2 a process is in one cgroup only: joining
    this one takes it out of the one that limits its memory.
    """
    with _new_group(what, DISK) as (version, path):
        yield DiskCgroup(version=version, path=path)


@contextlib.contextmanager
def _new_group(what: str, controller: tuple[str, str]) -> Iterator[tuple[int, Path]]:
    where = hierarchy(controller)
    _remove_left_over(where.mount)
    if where.version == 2:
        _hand_down(where.mount, controller[1])
    path = where.mount / lab_name(what)
    path.mkdir()
    with undone_by(lambda: _remove(path)):
        yield where.version, path


def _hand_down(mount: Path, controller: str) -> None:
    control = mount / "cgroup.subtree_control"
    if controller in control.read_text().split():
        return
    try:
        control.write_text(f"+{controller}")
    except OSError as error:
        raise LabError(
            f"{control} does not hand the {controller} controller down ({error.strerror}): "
            "run outside a container, or in one started with a cgroup of its own"
        ) from error


def _remove(path: Path) -> None:
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    while True:
        try:
            _remove_now(path)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise LabError(f"cgroup {path} cannot be removed: {error.strerror}") from error
            time.sleep(0.05)
        else:
            return


def _remove_now(path: Path) -> None:
    # Cgroups that were made within it, such as those of its threads, go first.
    for folder, _within, _files in os.walk(path, topdown=False):
        os.rmdir(folder)


def _remove_left_over(mount: Path) -> None:
    for name in os.listdir(mount):
        if left_by_the_dead(name):
            with contextlib.suppress(OSError):
                _remove_now(mount / name)
