"""A guest between two QEMUs, whatever runs in it: started in one, carried to the other, and heard
through both.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.qemus import LabQemu, Machine, run_qemu
from pageferry.testing.lab.serial import SerialPort


class PairedGuest:
    """A running guest, its QEMUs, and the lines that it says.

    A kind of guest overrides `_parse` and `_trouble`, called with the lock held. Blocking;
    reader threads collect what the guest says meanwhile. From trio, call the methods that wait
    through ``trio.to_thread.run_sync``.
    """

    def __init__(self, machine: Machine, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self._machine = machine
        self._stack = stack
        self._condition = threading.Condition()
        self.serial = SerialPort(self._take_line)
        stack.callback(self.serial.close)
        self._lives: dict[int, contextlib.ExitStack] = {}
        self.source = self._start("source", machine)
        self.destination: LabQemu | None = None

    def start_destination(
        self, change: Callable[[Machine], Machine] | None = None, name: str = "destination"
    ) -> LabQemu:
        """Start a QEMU like the source's, waiting for a migration; `change` makes it differ."""
        machine = self._machine if change is None else change(self._machine)
        self.destination = self._start(name, machine, incoming=True)
        return self.destination

    def retire(self, qemu: LabQemu) -> None:
        """End one of its QEMUs and clear away all that belongs to it, its RAM file and cgroup too:
        another one may be started by its name then.
        """
        self._lives.pop(qemu.serial_number).close()
        self.serial.detach(qemu.serial_number)
        if qemu is self.destination:
            self.destination = None

    def turn_round(self) -> None:
        """The guest has been carried: retire the QEMU that it came from. Its destination is the
        source of its next way.
        """
        if self.destination is None:
            raise LabError("it has no destination that it could have been carried to")
        old, self.source, self.destination = self.source, self.destination, None
        self.retire(old)

    def runner(self) -> LabQemu:
        """The QEMU in which the guest runs now. LabError when that is not exactly one."""
        candidates = [self.source] + ([self.destination] if self.destination else [])
        running = [qemu for qemu in candidates if qemu.status() == "running"]
        if len(running) != 1:
            states = {qemu.name: qemu.status() for qemu in candidates}
            raise LabError(f"the guest must run in exactly one QEMU: {states}")
        return running[0]

    def write(self, data: bytes) -> None:
        """Send to the serial port of the QEMU in which the guest runs."""
        self.serial.write(self.runner().serial_number, data)

    def _start(self, name: str, machine: Machine, *, incoming: bool = False) -> LabQemu:
        life = contextlib.ExitStack()
        qemu = life.enter_context(
            run_qemu(name, machine, self.folder, self.serial, incoming=incoming)
        )
        self._stack.callback(life.close)
        self._lives[qemu.serial_number] = life
        return qemu

    def _wait(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until `done`; LabError when the guest is in trouble, or has not `what` in time."""
        with self._condition:
            self._condition.wait_for(lambda: done() or self._trouble() is not None, timeout_s)
            trouble = self._trouble()
            if trouble is not None:
                raise LabError(f"the guest says: {trouble}")
            if not done():
                said = self.lines[-3:]
                raise LabError(f"the guest has not {what} within {timeout_s} s; it said {said}")

    def _trouble(self) -> str | None:
        """What the guest said when it cannot go on; None while it can."""
        return None

    def _parse(self, host_time_s: float, line: str) -> None:
        """Take in one line. KeyError and ValueError: it is damaged, and left out."""
        raise NotImplementedError

    def _take_line(self, host_time_s: float, line: str) -> None:
        with self._condition:
            # A line damaged by a reset or firmware output is not ours to parse.
            with contextlib.suppress(KeyError, ValueError):
                self._parse(host_time_s, line)
            self._condition.notify_all()
