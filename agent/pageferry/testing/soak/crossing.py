"""The wire between the two agents: a TCP relay of our own, which can be cut and silenced."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from pageferry.testing.lab.cleanup import undone_by
from pageferry.testing.lab.daemons import LOOPBACK

PIECE_BYTES = 256 * 1024


class Crossing:
    """One direction's wire: agents connect to :attr:`address`, and talk with the one at *port*."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server((LOOPBACK, 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{LOOPBACK}:{self._listener.getsockname()[1]}"

    @property
    def connections(self) -> int:
        """How many connections cross it now."""
        with self._lock:
            return len(self._sockets) // 2

    def cut(self) -> None:
        """End every connection at once. New ones are taken."""
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            _end(each)

    def silence(self) -> None:
        """Let nothing through until `speak`."""
        self._open.clear()

    def speak(self) -> None:
        """Let everything through again."""
        self._open.set()

    def close(self) -> None:
        """End it."""
        self.speak()
        _end(self._listener)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection((LOOPBACK, self._port), timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        with self._lock:
            self._sockets |= {near, far}
        back = threading.Thread(target=self._carry, args=(far, near), daemon=True)
        back.start()
        self._carry(near, far)
        back.join()
        with self._lock:
            self._sockets -= {near, far}
        near.close()
        far.close()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        """Until *one* ends what it says, or breaks; then so does *other*."""
        try:
            while data := one.recv(PIECE_BYTES):
                self._open.wait()
                other.sendall(data)
        except OSError:
            _end(one)
            _end(other)
            return
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def crossing(port: int) -> Iterator[Crossing]:
    """A wire to the agent that listens at *port*."""
    made = Crossing(port)
    with undone_by(made.close):
        yield made


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
