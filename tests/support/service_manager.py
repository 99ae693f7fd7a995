"""systemd as a daemon sees it: notifications, the descriptor store, passed sockets. By its manual
(sd_notify(3), sd_listen_fds(3)); a real one is for the tests of the packaged units."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

LAUNCHER = """
import fcntl, os, sys
count = int(sys.argv[1])
given = [int(number) for number in sys.argv[2 : 2 + count]]
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for fd in given]
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number)
    os.close(fd)
for fd in given:
    if fd >= 3 + count:
        os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, *sys.argv[2 + count :]])
"""


class FakeServiceManager:
    """Starts a daemon again and again, and keeps what it is asked to."""

    def __init__(
        self, folder: Path, *, keeps: bool = True, watchdog_s: float | None = None
    ) -> None:
        self.path = folder / "notify"
        self.messages: list[list[str]] = []
        self.kept: dict[str, int] = {}
        self.sockets: list[tuple[str, socket.socket]] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self._keeps = keeps
        self._watchdog_s = watchdog_s
        self._condition = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(self.path))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def close(self) -> None:
        """End, as when the unit is stopped: no process is left, and the store is emptied."""
        for process in self.processes:
            process.kill()
            process.wait()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"END", os.fspath(self.path))
        self._thread.join()
        self._socket.close()
        self.drop_store()
        for _name, sock in self.sockets:
            sock.close()

    def drop_store(self) -> None:
        """Close everything that is kept."""
        for fd in self.kept.values():
            os.close(fd)
        self.kept.clear()

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None, log: int = 2
    ) -> subprocess.Popen[bytes]:
        """Start ``python *arguments`` with what is kept, and wait until it is ready."""
        passed = [*((name, sock.fileno()) for name, sock in self.sockets), *self.kept.items()]
        fds = [fd for _name, fd in passed]
        variables = {**os.environ, **(environment or {}), "NOTIFY_SOCKET": os.fspath(self.path)}
        if passed:
            variables["LISTEN_FDS"] = str(len(passed))
            variables["LISTEN_FDNAMES"] = ":".join(name for name, _fd in passed)
        if self._watchdog_s is not None:
            variables["WATCHDOG_USEC"] = str(int(self._watchdog_s * 1e6))
        seen = len(self.messages)
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(len(fds)), *map(str, fds), *arguments],
            pass_fds=fds,
            env=variables,
            stderr=log,
            start_new_session=True,
        )
        self.processes.append(process)
        self.wait(
            lambda: (
                any("READY=1" in message for message in self.messages[seen:])
                or process.poll() is not None
            )
        )
        assert process.poll() is None, "the daemon did not start"
        return process

    def wait(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait until *condition* holds, looked at after each message and now and then."""
        deadline = time.monotonic() + timeout_s
        with self._condition:
            while not condition():
                assert time.monotonic() < deadline, self.messages
                self._condition.wait(0.05)

    def told(self, line: str) -> bool:
        """Whether that was said."""
        return any(line in message for message in self.messages)

    def _listen(self) -> None:
        while True:
            data, fds, _flags, _address = socket.recv_fds(self._socket, 65536, 16)
            if data == b"END":
                return
            lines = data.decode().split("\n")
            self._obey(lines, fds)
            with self._condition:
                self.messages.append(lines)
                self._condition.notify_all()

    def _obey(self, lines: list[str], fds: list[int]) -> None:
        values = dict(line.split("=", 1) for line in lines)
        name = values.get("FDNAME", "stored")
        if "FDSTORE" in values and self._keeps:
            self.kept[name] = fds.pop()
        if "FDSTOREREMOVE" in values and name in self.kept:
            os.close(self.kept.pop(name))
        for fd in fds:  # a barrier's too, which is what its sender waits for
            os.close(fd)


@contextlib.contextmanager
def service_manager(
    folder: Path, *, keeps: bool = True, watchdog_s: float | None = None
) -> Iterator[FakeServiceManager]:
    """One, until the end of the block."""
    manager = FakeServiceManager(folder, keeps=keeps, watchdog_s=watchdog_s)
    try:
        yield manager
    finally:
        manager.close()
