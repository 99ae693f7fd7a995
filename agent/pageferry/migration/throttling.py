"""Throttling the guest's vCPUs, so that it writes no faster than can be sent.

By a CPU quota for the vCPU threads where this host allows it, else by stopping the guest for a
slice of each tenth of a second. A guard process undoes either when this one is gone
(`throttle_guard`); what outlives both, a reboot of nothing included, is undone by `recover`: it
knows our cgroups by their name, and a stopped guest by a marker file.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from pageferry.kernel.cpu_throttle import VcpuThrottle, remove_throttle, undo_throttle
from pageferry.migration.progress import Progress
from pageferry.model.errors import KernelFeatureError, MigrationFailedError, QemuError
from pageferry.qemu.bare import continue_paused
from pageferry.qemu.monitor import Monitor
from pageferry.qemu.switchover import guest_status
from pageferry.testing.faults import CPU_QUOTA, fault_point

log = logging.getLogger(__name__)

SLICE_S = 0.1
"""The guest is stopped for a part of each."""

LEAST_RUN_S = 0.005
"""Shorter, and stopping and continuing would be all that it does."""

GUARD_START_S = 20.0

GUARD_END_S = 5.0
"""How long its end is waited for. It may have to wait for us: QEMU's monitor takes one client, and
that may be a worker of which QEMU takes no command any more."""


class Guard:
    """The guard process, from the worker's side. Raises MigrationFailedError when it is gone."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    async def start(cls, pid: int, qmp: str) -> Guard:
        """Returns when it stands guard. Raises MigrationFailedError."""
        command = [sys.executable, "-P", "-m", "pageferry.migration.throttle_guard"]
        process = await trio.to_thread.run_sync(
            lambda: subprocess.Popen(
                [*command, "--pid", str(pid), "--qmp", qmp],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        )
        guard = cls(process)
        assert process.stdout is not None
        with trio.move_on_after(GUARD_START_S), process.stdout:
            await trio.lowlevel.wait_readable(process.stdout.fileno())
            if os.read(process.stdout.fileno(), 16) == b"ready\n":
                return guard
        process.kill()
        await guard.end()
        raise MigrationFailedError(
            "the process that guards a throttled guest did not start, so it is not throttled",
            advice="look at the worker's log, or migrate without auto-converge",
        )

    def tell(self, word: bytes) -> None:
        """Tell it what is to be undone from now on. On the pipe when this returns."""
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), word)
        except OSError as error:
            raise MigrationFailedError(
                "the process that guards the throttled guest is gone",
                advice="find out what ended it; migrate again",
            ) from error

    async def end(self) -> None:
        """Let it end, and reap it: it undoes what is left to undo, and goes on with it by itself
        when that takes long.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + GUARD_END_S) as scope:
            await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
        if scope.cancelled_caught:
            log.warning("the guard of the throttled guest goes on until QEMU answers it")


class Throttle:
    """The throttle of one guest. Run `run` beside; `set` as wanted; `release` in any case."""

    def __init__(
        self,
        monitor: Monitor,
        vcpu_threads: Sequence[int],
        migration_id: str,
        state_dir: Path,
        progress: Progress,
    ) -> None:
        self._monitor = monitor
        self._pid = monitor.peer_pid
        self._vcpus = VcpuThrottle(monitor.peer_pid, vcpu_threads, migration_id)
        self._marker = marker_path(state_dir, migration_id)
        self._progress = progress
        self._guard: Guard | None = None
        self._slicing = False
        self._lock = trio.Lock()
        self._wake = trio.Event()
        self.percent = 0

    @property
    def is_slicing(self) -> bool:
        """Whether the guest is stopped again and again, rather than given a quota."""
        return self._slicing

    async def set(self, percent: int) -> None:
        """From now on take *percent* of the vCPUs' time; 0 gives all back.

        Raises MigrationFailedError when it cannot be done safely. After a cancellation, `release`.
        """
        if percent == self.percent:
            return
        if not percent:
            await self.release()
            return
        if self._guard is None:
            self._guard = await Guard.start(self._pid, self._monitor.path)
            await self._begin(self._guard)
        if not self._slicing:
            await trio.to_thread.run_sync(self._vcpus.set, percent)
        self.percent = self._progress.throttle_percent = percent
        self._wake.set()
        log.info("the guest does not converge: %d %% taken from its vCPUs", percent)

    async def release(self) -> None:
        """Give the guest all its time back, and end the guard. Idempotent; not to be cancelled."""
        if self._guard is None:
            return
        with trio.CancelScope(shield=True):
            # A slice that has begun sees that it is to be the last.
            self.percent = self._progress.throttle_percent = 0
            async with self._lock:
                await trio.to_thread.run_sync(self._vcpus.leave)
                guard, self._guard = self._guard, None
                await guard.end()
                self._slicing = False
                self._marker.unlink(missing_ok=True)

    async def run(self) -> None:
        """Stop and continue the guest in slices, where that is the way. Until cancelled."""
        while True:
            if not (self._slicing and self.percent):
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            stop_s = min(SLICE_S * self.percent / 100, SLICE_S - LEAST_RUN_S)
            async with self._lock:
                with trio.CancelScope(shield=True):
                    await self._stop_for(stop_s)
            await trio.sleep(SLICE_S - stop_s)

    async def _begin(self, guard: Guard) -> None:
        guard.tell(b"T")
        try:
            await trio.to_thread.run_sync(fault_point, CPU_QUOTA)
            await trio.to_thread.run_sync(self._vcpus.enter)
        except (KernelFeatureError, OSError) as error:
            log.info("%s; it is stopped for short slices instead", error)
            await trio.to_thread.run_sync(_mark, self._marker)
            self._slicing = True

    async def _stop_for(self, stop_s: float) -> None:
        guard = self._guard
        if guard is None or not self.percent or await guest_status(self._monitor) != "running":
            # Someone else has stopped it: then it is not for us to continue it.
            return
        guard.tell(b"S")
        try:
            await self._monitor.execute("stop")
            await trio.sleep(stop_s)
        finally:
            await self._monitor.execute("cont")
        guard.tell(b"C")


def marker_path(state_dir: Path, migration_id: str) -> Path:
    """The file that says that this guest may be stopped by our throttle."""
    return state_dir / f"{migration_id}.throttled"


async def undo_left_over(
    pid: int | None, qmp: str, state_dir: Path, migration_id: str, *, resume: bool
) -> None:
    """Undo the throttle of a worker that is gone, if its guard did not. *pid* None: QEMU is gone,
    too. *resume*: a guest that a slice may have stopped is to run.

    Raises QemuError when it may still be stopped; then try again.
    """
    if pid is None:
        if await trio.to_thread.run_sync(remove_throttle, migration_id):
            log.info("%s: the cgroup in which its guest was throttled is removed", migration_id)
    elif await trio.to_thread.run_sync(undo_throttle, pid):
        log.warning("QEMU process %d was still throttled; it has its CPU time back", pid)
    marker = marker_path(state_dir, migration_id)
    if not marker.exists():
        return
    try:
        if pid is not None and resume and await trio.to_thread.run_sync(continue_paused, qmp):
            log.warning("the guest at %s was still stopped by the throttle, and runs again", qmp)
    except (OSError, ValueError) as error:
        raise QemuError(
            f"the guest may be stopped: {error}", advice="`cont` on its monitor"
        ) from error
    marker.unlink(missing_ok=True)


def _mark(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fsync(fd)
    os.close(fd)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fsync(folder)
    os.close(folder)
