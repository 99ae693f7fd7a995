"""A guest's serial port over a migration: one stream of lines from two QEMUs.

The lab listens and each QEMU connects at its start, so nothing said is lost. A line that the guest
began on the source may end on the destination: both feed one buffer, and since only one of them
runs the guest at a time, what they send joins to what the guest said.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pageferry.testing.lab.cleanup import LabError

READ_BYTES = 65536


class SerialPort:
    """The guest's serial port: :meth:`attach` a listener for each QEMU, then read lines and write.

    ``on_line(host_time_s, line)`` is called from a reader thread for each complete line.
    """

    def __init__(self, on_line: Callable[[float, str], None]) -> None:
        self._on_line = on_line
        self._lock = threading.Lock()
        self._partial = b""
        self.speakers: list[int] = []
        """The QEMUs whose guest spoke, in their order: one more entry whenever that changes."""
        self._connections: dict[int, socket.socket] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._attached = 0

    def attach(self, path: Path) -> int:
        """Listen at `path` for one more QEMU's chardev (``server=off``); its number for write."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1)
        number = self._attached
        self._attached += 1
        self._listeners[number] = listener
        thread = threading.Thread(target=self._serve, args=(number, listener), daemon=True)
        thread.start()
        self._threads[number] = thread
        return number

    def detach(self, number: int) -> None:
        """Forget a QEMU that has ended."""
        with self._lock:
            sockets = [self._listeners.pop(number, None), self._connections.pop(number, None)]
        _close(*(each for each in sockets if each is not None))
        thread = self._threads.pop(number, None)
        if thread is not None:
            thread.join(timeout=5)

    def write(self, number: int, data: bytes) -> None:
        """Send to the guest through this QEMU. LabError when it is not connected."""
        with self._lock:
            connection = self._connections.get(number)
        if connection is None:
            raise LabError("this QEMU has not connected its serial port")
        connection.sendall(data)

    def close(self) -> None:
        """End all connections and their readers."""
        _close(*self._listeners.values(), *self._connections.values())
        for thread in self._threads.values():
            thread.join(timeout=5)

    def _serve(self, number: int, listener: socket.socket) -> None:
        # Each line wakes this thread up while the guest, which said it, works on: as a batch thread
        # it takes nobody's processor then (sched(7)), least of all that of whom it measures.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with self._lock:
                self._connections[number] = connection
            while data := connection.recv(READ_BYTES):
                self._take(number, data)

    def _take(self, number: int, data: bytes) -> None:
        now_s = time.monotonic()
        with self._lock:
            if self.speakers[-1:] != [number]:
                self.speakers.append(number)
            *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._on_line(now_s, line.decode("ascii", "replace").strip("\r"))


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
