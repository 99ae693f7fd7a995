"""Faults as they are done to one migration: wait for the moment, strike, and make good.

What is killed stays dead until `mend`; what was stopped or silenced goes on there.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.qemus import LabQemu
from pageferry.testing.soak.plan import DESTINATION_PHASES, HOLDING, SOURCE_PHASES, Fault, Moment
from pageferry.testing.soak.stage import Stage, kill, send

WATCH_S = 0.001
MOMENT_TIMEOUT_S = 60.0
FIND_TIMEOUT_S = 5.0

UNDECIDED = (
    None,
    DestinationPhase.READY.value,
    DestinationPhase.RECEIVING.value,
    DestinationPhase.DEVICE.value,
    DestinationPhase.LOADED.value,
)
"""What the destination's journal may say when its QEMU is killed: the guest is not its own yet."""


@dataclass(slots=True)
class Strike:
    """One fault for one migration from *here* to *there*."""

    stage: Stage
    fault: Fault
    here: str
    there: str
    migration_id: str
    waiting: LabQemu
    """The destination's QEMU."""
    _stopped: list[int] = field(default_factory=list)

    def wait(self, moment: Moment, over: Callable[[], bool]) -> bool:
        """Wait for the moment. False when the migration was over before."""
        order = [each.value for each in _order(moment.role)]
        wanted = order[order.index(moment.phase) :]
        host = self.here if moment.role == "source" else self.there
        deadline_s = time.monotonic() + MOMENT_TIMEOUT_S
        while self.stage.phase(host, self.migration_id, moment.role) not in wanted:
            if over() or time.monotonic() > deadline_s:
                return False
            time.sleep(WATCH_S)
        time.sleep(moment.delay_ms / 1000)
        return True

    def until_struck(self, over: Callable[[], bool]) -> bool:
        """Strike, and again while there is nothing yet to strike at, such as a worker that has
        just been started. False when the migration was over before.
        """
        deadline_s = time.monotonic() + FIND_TIMEOUT_S
        while not self.strike():
            if over() or time.monotonic() > deadline_s:
                return False
            time.sleep(WATCH_S)
        return True

    def strike(self) -> bool:
        """Do it. False when it came too late to do anything."""
        deeds: dict[Fault, Callable[[], bool]] = {
            Fault.NONE: lambda: False,
            Fault.CANCEL: self._cancel,
            Fault.KILL_SOURCE_WORKER: lambda: kill(self._worker("source")),
            Fault.KILL_DESTINATION_WORKER: lambda: kill(self._worker("destination")),
            Fault.KILL_BOTH_WORKERS: self._kill_workers,
            Fault.KILL_SOURCE_DAEMON: lambda: self._kill_daemon(self.here),
            Fault.KILL_DESTINATION_DAEMON: lambda: self._kill_daemon(self.there),
            Fault.KILL_BOTH_AGENTS: self._kill_agents,
            Fault.KILL_DESTINATION_QEMU: self._kill_qemu,
            Fault.STOP_SOURCE_WORKER: lambda: self._stop(self._worker("source")),
            Fault.STOP_DESTINATION_WORKER: lambda: self._stop(self._worker("destination")),
            Fault.STOP_DESTINATION_QEMU: lambda: self._stop(self._pid_of_qemu()),
            Fault.CUT: self._cut,
            Fault.SILENCE: self._silence,
        }
        return deeds[self.fault]()

    def mend(self, hold_s: float) -> None:
        """Let all go on that was stopped, after so long, and start again what was killed."""
        if self.fault in HOLDING:
            time.sleep(hold_s)
        for pid in self._stopped:
            send(pid, signal.SIGCONT)
        for each in self.stage.crossings.values():
            each.speak()
        self.stage.restart_the_dead()

    def _worker(self, role: str) -> int | None:
        host = self.here if role == "source" else self.there
        return self.stage.worker(host, self.migration_id, role)

    def _pid_of_qemu(self) -> int | None:
        return self.waiting.pid if self.waiting.process.poll() is None else None

    def _cancel(self) -> bool:
        with contextlib.suppress(LabError):  # it is over, or committed
            self.stage.ask(self.here, "migrate-cancel", migration_id=self.migration_id)
            return True
        return False

    def _kill_workers(self) -> bool:
        # Both are looked up before either is killed: the other one soon ends by itself.
        pids = [self._worker("source"), self._worker("destination")]
        killed = [kill(pid) for pid in pids]
        return any(killed)

    def _kill_daemon(self, host: str) -> bool:
        self.stage.daemons[host].kill()
        return True

    def _kill_agents(self) -> bool:
        pids = [self._worker("source"), self._worker("destination")]
        for daemon in self.stage.daemons.values():
            daemon.kill()
        for pid in pids:
            kill(pid)
        return True

    def _kill_qemu(self) -> bool:
        """Nobody may make the guest the destination's between the look and the kill."""
        if self._pid_of_qemu() is None:
            return False
        worker = self._worker("destination")
        with _held([pid for pid in (worker, self._pid_of_qemu()) if pid is not None]):
            phase = self.stage.phase(self.there, self.migration_id, "destination")
            if worker is None or phase not in UNDECIDED:
                return False
            self.waiting.process.kill()
            self.waiting.process.wait()
        return True

    def _stop(self, pid: int | None) -> bool:
        if pid is None or not send(pid, signal.SIGSTOP):
            return False
        self._stopped.append(pid)
        return True

    def _cut(self) -> bool:
        wire = self.stage.crossings[self.there]
        any_open = wire.connections > 0
        wire.cut()
        return any_open

    def _silence(self) -> bool:
        self.stage.crossings[self.there].silence()
        return True


@contextlib.contextmanager
def _held(pids: Sequence[int]) -> Iterator[None]:
    """Processes that stand still within the block."""
    for pid in pids:
        send(pid, signal.SIGSTOP)
    time.sleep(0.01)
    try:
        yield
    finally:
        for pid in pids:
            send(pid, signal.SIGCONT)


def _order(role: str) -> Sequence[SourcePhase | DestinationPhase]:
    return SOURCE_PHASES if role == "source" else DESTINATION_PHASES
