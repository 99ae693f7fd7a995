"""A worker process: started in a session of its own, and talked to over the link.

Ctrl-C on the daemon's terminal does not reach it, and it outlives the daemon. When nobody holds our
end of the link any more it cancels its migration by itself, or brings it to an end where it has
committed already; when systemd holds it, the next daemon takes the worker over (`adopt`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from pageferry.migration.link import TOKEN_VARIABLE, Link, LinkLostError, socket_pair

WORKER_COMMAND: Final = (sys.executable, "-P", "-m", "pageferry.migration.worker")

EXIT_GRACE_S: Final = 30.0
"""How long a worker may take to end after its last word. It only closes things by then."""


class _Process(Protocol):
    """The process behind a link."""

    pid: int

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet, as far as can be told without waiting."""

    async def wait(self) -> str:
        """Wait for its end; tells how it ended."""

    def kill(self) -> None:
        """End it by force."""


class _Child:
    """One that this daemon started, and reaps."""

    def __init__(self, process: trio.Process) -> None:
        self.pid = process.pid
        self._process = process

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    async def wait(self) -> str:
        code = await self._process.wait()
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"

    def kill(self) -> None:
        self._process.kill()


class _Orphan:
    """One that a daemon before this one started: only its end can be waited for."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd

    is_running = True

    async def wait(self) -> str:
        await trio.lowlevel.wait_readable(self._pidfd)
        os.close(self._pidfd)
        return "how, only the daemon before this one could have seen"

    def kill(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class _Gone:
    """One that had ended before this daemon came."""

    pid = 0
    is_running = False

    async def wait(self) -> str:
        return "while no daemon ran"

    def kill(self) -> None:
        return


class WorkerProcess:
    """A running worker. `send` and `receive` are those of its link; see migration.link."""

    def __init__(self, process: _Process, link: Link) -> None:
        self._process = process
        self._link = link
        self.pid = process.pid
        self.unread: dict[str, Any] | None = None
        """A packet that was taken off the link and is to be received again."""

    @classmethod
    async def spawn(cls, command: Sequence[str]) -> WorkerProcess:
        """Start *command* with ``--link-fd N``, in the daemon's own environment.

        Raises OSError. The caller must call `end` or `abandon`.
        """
        ours, theirs = socket_pair()
        link = Link(ours)
        try:
            with theirs:
                process = await trio.lowlevel.open_process(
                    [*command, "--link-fd", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    env={**os.environ, TOKEN_VARIABLE: secrets.token_hex(16)},
                )
        except BaseException:
            link.close()
            raise
        return cls(_Child(process), link)

    @classmethod
    def adopt(cls, link_fd: int) -> WorkerProcess:
        """The worker at the other end of a link that the daemon before this one had.

        Takes over *link_fd*. Which process it is `identify` finds out.
        """
        return cls(_Gone(), Link(socket.socket(fileno=link_fd)))

    async def identify(self, take: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Ask an adopted worker who it is; returns its packet, an ``identity`` or ``finished``.

        What comes before goes to *take*. Raises LinkLostError, ValueError.
        """
        with contextlib.suppress(LinkLostError):  # what it said before it ended can still be read
            await self.send({"type": "identify"})
        while (packet := await self.receive()).get("type") not in ("identity", "finished"):
            take(packet)
        orphan = _orphan(int(packet.get("pid", 0)), str(packet.get("token", "")))
        if orphan is not None:
            self._process, self.pid = orphan, orphan.pid
        return packet

    async def send(self, packet: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a packet. Raises LinkLostError when the worker is gone."""
        await self._link.send(packet, fds)

    async def receive(self) -> dict[str, Any]:
        """The next packet. Raises LinkLostError at the end, ValueError on what is no packet."""
        if self.unread is not None:
            packet, self.unread = self.unread, None
            return packet
        packet, fds = await self._link.receive()
        if fds or not isinstance(packet, dict):
            raise ValueError("a worker sent what no worker sends")
        return packet

    @property
    def is_running(self) -> bool:
        """Whether a process started here has not ended yet."""
        return self._process.is_running

    def link_fd(self) -> int:
        """The descriptor of our end of the link, which stays ours."""
        return self._link.fileno()

    def abandon(self) -> None:
        """Close the link and leave the worker to itself: it cancels, or ends what it committed."""
        self._link.close()

    async def end(self) -> str:
        """Close the link, wait for the process, and tell how it ended.

        A worker that does not end is killed after EXIT_GRACE_S: nobody can speak with it any more,
        and its migration can be settled only once it provably does nothing.
        """
        self._link.close()
        with trio.move_on_after(EXIT_GRACE_S):
            return await self.wait()
        self._process.kill()
        return await self.wait()

    async def wait(self) -> str:
        """Wait for the process to end and reap it; tells how it ended."""
        return await self._process.wait()


def _orphan(pid: int, token: str) -> _Orphan | None:
    """The process, unless it has ended, or its number is another's by now."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except PermissionError:
        return _Orphan(pid, pidfd)
    except OSError:
        environment = []
    # Looked at after the descriptor was opened: the process cannot have been replaced since.
    if f"{TOKEN_VARIABLE}={token}".encode() not in environment:
        os.close(pidfd)
        return None
    return _Orphan(pid, pidfd)
