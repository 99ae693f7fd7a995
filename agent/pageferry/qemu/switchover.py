"""QEMU's part of the switchover, in the order of calls that worked on QEMU 7.2, 10.0 and 11.1.

With ``x-ignore-shared`` QEMU leaves the shared RAM out and migrates only its devices and a few
small blocks (ROMs, video memory). ``pause-before-switchover`` makes it stop the guest and wait
before it sends device state; ``return-path`` makes the source wait for the destination's word. The
stream runs over a socket that is handed over as a descriptor.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import trio

from pageferry.model.errors import MigrationFailedError, QemuError
from pageferry.qemu.monitor import Event, Monitor
from pageferry.testing.faults import BEFORE_CONT, fault_point

FD_NAME = "pageferry"

CAPABILITIES: Mapping[str, bool] = {
    "x-ignore-shared": True,
    "return-path": True,
    "events": True,
}

_PAUSE: Mapping[str, bool] = {"pause-before-switchover": True}

FOREIGN_CAPABILITIES = (
    "multifd",
    "postcopy-ram",
    "auto-converge",
    "background-snapshot",
    "zero-copy-send",
    "mapped-ram",
    "compress",
    "xbzrle",
)
"""Capabilities of QEMU's own RAM migration that someone may have set and that would get in the
way."""

CANCEL_DEADLINE_S = 30.0

RETRY_S = 0.05

BRIEFLY_S = 0.0005
"""For what QEMU does next and tells nobody of, while the guest is stopped."""

DRAIN_TIMEOUT_S = 120.0
"""A drain waits for all I/O in flight: as long as the slowest storage takes."""

CONT_TIMEOUT_S = 30.0
"""`cont` activates block devices, which takes locks on shared storage."""


async def drain(monitor: Monitor) -> float:
    """Wait until all of QEMU's block I/O in flight has ended. Returns the seconds it took.

    An empty transaction drains all block nodes (QEMU's docs: transactions begin with
    bdrv_drain_all) without stopping a vCPU; a guest that submits I/O meanwhile waits. Raises
    QemuError.
    """
    began = time.monotonic()
    await monitor.execute("transaction", {"actions": []}, timeout_s=DRAIN_TIMEOUT_S)
    return time.monotonic() - began


async def guest_status(monitor: Monitor) -> str:
    """The guest's RunState. Raises QemuError."""
    return str((await monitor.execute("query-status"))["status"])


class _Handover:
    """A QEMU whose migration capabilities are changed, and set back."""

    def __init__(self, monitor: Monitor, changed: Mapping[str, bool] | None = None) -> None:
        """*changed*: what `SourceHandover.changes` returned to another process, to be set back."""
        self._monitor = monitor
        self._changed = dict(changed or {})

    async def restore(self) -> None:
        """Set the capabilities back to what they were.

        With ``x-ignore-shared`` left on, a migration by QEMU itself, of the guest that has arrived,
        would leave its RAM behind.
        """
        changed, self._changed = self._changed, {}
        if changed:
            await _set_states(self._monitor, changed)


class SourceHandover(_Handover):
    """The source's QEMU. Call prepare, stop and complete, in order.

    `cancel` leads back from everywhere. All raise QemuError, the last two also when QEMU reports
    that the migration failed.
    """

    async def changes(self) -> dict[str, bool]:
        """The capabilities that `prepare` will change, as they are now: for the journal."""
        states = await _capability_states(self._monitor)
        target = _target_states(states, {**CAPABILITIES, **_PAUSE})
        return {name: states[name] for name in target if name in states}

    async def prepare(self) -> None:
        """Set the capabilities; `cancel` and `restore` set back what this changed."""
        self._changed = await _set_capabilities(self._monitor, {**CAPABILITIES, **_PAUSE})

    async def stop(self, fd: int, deadline_s: float) -> None:
        """Begin the migration over the socket *fd*, of which QEMU gets a duplicate. Returns when it
        has stopped the guest and waits at ``pre-switchover``."""
        await self._monitor.send_fd(FD_NAME, fd)
        await _until_after(
            self._monitor, "migrate", {"uri": f"fd:{FD_NAME}"}, "pre-switchover", deadline_s
        )

    async def complete(self, deadline_s: float) -> None:
        """Let QEMU save its devices. Returns when it says that the migration is completed; the
        guest stays stopped."""
        state = {"state": "pre-switchover"}
        await _until_after(self._monitor, "migrate-continue", state, "completed", deadline_s)

    async def cancel(self, *, resume: bool) -> None:
        """Back to where the guest was before `start`: running if *resume*, else paused.

        Works from any point before the guest may run elsewhere, also after *completed*, and from a
        new connection. Idempotent. Raises QemuError when it does not get there in 30 s; the guest
        is then stopped, but whole.
        """
        with trio.move_on_after(CANCEL_DEADLINE_S):
            await self._end_migration()
            await self._settle_run_state(resume=resume)
            await self.restore()
            return
        raise QemuError(
            f"QEMU did not come back from its migration within {CANCEL_DEADLINE_S:g} s",
            advice="connect to its QMP socket, `migrate_cancel`, then `cont`",
        )

    async def _end_migration(self) -> None:
        while True:
            status = await migration_status(self._monitor)
            if status in ("none", "completed", "failed", "cancelled"):
                return
            if status != "cancelling":
                await self._monitor.execute("migrate_cancel")
            await trio.sleep(RETRY_S)

    async def _settle_run_state(self, *, resume: bool) -> None:
        wanted = "running" if resume else "paused"
        while True:
            status = await guest_status(self._monitor)
            if status == wanted or (not resume and status not in ("running", "finish-migrate")):
                return
            try:
                command = "cont" if resume else "stop"
                await self._monitor.execute(command, timeout_s=CONT_TIMEOUT_S)
            except QemuError as error:
                # "Migration is not finalized yet": 11.1, for a moment after completed.
                if not error.error_class:
                    raise
                await trio.sleep(RETRY_S)


class DestinationHandover(_Handover):
    """The destination's QEMU, started with ``-incoming defer -S``. All raise QemuError."""

    async def prepare(self, fd: int) -> None:
        """Let QEMU take its devices from the socket *fd*, of which it gets a duplicate.

        First it is told not to let the guest run by itself when it has them: a QEMU without -S
        would, and so would one that somebody has sent `cont` while it waited (virsh resume does).
        In this state `stop` does just that (QEMU's qmp_stop: autostart).
        """
        await self._monitor.execute("stop")
        self._changed = await _set_capabilities(self._monitor, CAPABILITIES)
        await self._monitor.send_fd(FD_NAME, fd)
        await self._monitor.execute("migrate-incoming", {"uri": f"fd:{FD_NAME}"})

    async def until_completed(self, deadline_s: float | None = None) -> None:
        """Wait until QEMU has loaded its devices, and `restore`; the guest is then paused."""
        await _until(self._monitor, "completed", deadline_s)
        await self.restore()
        # The event comes a moment before the run state leaves inmigrate.
        while await guest_status(self._monitor) == "inmigrate":  # noqa: ASYNC110 - no event tells
            await trio.sleep(BRIEFLY_S)

    async def run(self) -> str:
        """Let the guest run. Returns its RunState right after.

        Raises QemuError. With an ``error_class`` QEMU refused, and the guest has not run: `cont`
        checks all that it needs before it starts a vCPU (QEMU's qmp_cont). Without one QEMU is gone
        or did not answer, and whether the guest has run is not known.
        """
        await trio.to_thread.run_sync(fault_point, BEFORE_CONT)
        await self._monitor.execute("cont", timeout_s=CONT_TIMEOUT_S)
        try:
            return await guest_status(self._monitor)
        except QemuError:
            return "running"  # it has run, whatever became of QEMU since

    async def discard(self) -> None:
        """End QEMU, so that the guest can never run here. Returns when it is gone.

        A QEMU that is gone already is fine; one that lives on after 30 s is a QemuError.
        """
        with trio.move_on_after(CANCEL_DEADLINE_S):
            with self._monitor.events() as events:
                try:
                    await self._monitor.execute("quit")
                except QemuError as error:
                    if error.error_class:
                        raise
                async for _event in events:
                    continue
            return
        raise QemuError("the destination's QEMU does not end", advice="end its process yourself")


async def _until_after(
    monitor: Monitor, command: str, arguments: Mapping[str, str], wanted: str, deadline_s: float
) -> None:
    """Give the command, and wait until the migration's status is *wanted*.

    What events tell is not asked for as well: each question to QEMU takes a millisecond, in which
    the guest is stopped.
    """
    with monitor.events() as events, trio.move_on_after(deadline_s):
        await monitor.execute(command, arguments)
        await _reach(monitor, events, wanted)
        return
    raise _too_slow(wanted, deadline_s)


async def _until(monitor: Monitor, wanted: str, deadline_s: float | None) -> None:
    """Wait until the migration's status is *wanted*. Subscribed before asking: nothing is
    missed."""
    limit_s = float("inf") if deadline_s is None else deadline_s
    with monitor.events() as events, trio.move_on_after(limit_s):
        if not await _is_reached(monitor, await migration_status(monitor), wanted):
            await _reach(monitor, events, wanted)
        return
    raise _too_slow(wanted, deadline_s)


async def _reach(monitor: Monitor, events: trio.MemoryReceiveChannel[Event], wanted: str) -> None:
    while not await _is_reached(monitor, await _next_status(monitor, events), wanted):
        continue


async def _is_reached(monitor: Monitor, status: str, wanted: str) -> bool:
    if status in ("failed", "cancelled") or (status == "completed" != wanted):
        raise await _failed(monitor, status)
    return status == wanted


def _too_slow(wanted: str, deadline_s: float | None) -> QemuError:
    return QemuError(
        f"QEMU's migration did not get to {wanted} within {deadline_s} s",
        advice="look at what its main loop waits for, storage most often",
    )


async def _next_status(monitor: Monitor, events: trio.MemoryReceiveChannel[Event]) -> str:
    """The MigrationStatus that QEMU tells of next (capability ``events``)."""
    async for name, data, _time_us in events:
        if name == "MIGRATION":
            return str(data["status"])
    raise QemuError(
        "QEMU is gone: it ended during the migration",
        advice=f"look at the log of the QEMU that listens on {monitor.path}",
    )


async def _failed(monitor: Monitor, status: str) -> Exception:
    info = await monitor.execute("query-migrate")
    reason = info.get("error-desc") or "it does not say why; see its log"
    return MigrationFailedError(
        f"QEMU's migration of the devices ended as {status}: {reason}",
        advice="check that both QEMUs have the same devices and machine",
    )


async def migration_status(monitor: Monitor) -> str:
    """MigrationStatus of QEMU's own last migration; ``none`` before the first. Raises QemuError."""
    return str((await monitor.execute("query-migrate")).get("status", "none"))


async def _set_capabilities(monitor: Monitor, wanted: Mapping[str, bool]) -> dict[str, bool]:
    """Set what is wanted, and unset what would get in the way. Returns what was there before."""
    states = await _capability_states(monitor)
    changed = _target_states(states, wanted)
    await _set_states(monitor, changed)
    return {name: states.get(name, False) for name in changed}


def _target_states(states: Mapping[str, bool], wanted: Mapping[str, bool]) -> dict[str, bool]:
    """What is to be set, of what is not so already."""
    target = {name: False for name in FOREIGN_CAPABILITIES if states.get(name)} | dict(wanted)
    return {name: state for name, state in target.items() if states.get(name) != state}


async def _capability_states(monitor: Monitor) -> dict[str, bool]:
    listed = await monitor.execute("query-migrate-capabilities")
    return {str(each["capability"]): bool(each["state"]) for each in listed}


async def _set_states(monitor: Monitor, states: Mapping[str, bool]) -> None:
    capabilities = [{"capability": name, "state": state} for name, state in states.items()]
    await monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})
