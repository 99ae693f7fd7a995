"""A worker process: started in a session of its own, and talked to over the link.

Ctrl-C on the daemon's terminal does not reach it, and it outlives the daemon: when the link ends it
cancels its migration by itself, or brings it to an end where it has committed already.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import trio

from pageferry.migration.link import Link, socket_pair

WORKER_COMMAND: Final = (sys.executable, "-m", "pageferry.migration.worker")

EXIT_GRACE_S: Final = 30.0
"""How long a worker may take to end after its last word. It only closes things by then."""


class WorkerProcess:
    """A running worker. `send` and `receive` are those of its link; see migration.link."""

    def __init__(self, process: trio.Process, link: Link) -> None:
        self._process = process
        self._link = link
        self.pid = process.pid

    @classmethod
    async def spawn(cls, command: Sequence[str], environment: Mapping[str, str]) -> WorkerProcess:
        """Start *command* with ``--link-fd N``; *environment* is added to the daemon's own.

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
                    env={**os.environ, **environment},
                )
        except BaseException:
            link.close()
            raise
        return cls(process, link)

    async def send(self, packet: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a packet. Raises LinkLostError when the worker is gone."""
        await self._link.send(packet, fds)

    async def receive(self) -> dict[str, Any]:
        """The next packet. Raises LinkLostError at the end, ValueError on what is no packet."""
        packet, fds = await self._link.receive()
        if fds or not isinstance(packet, dict):
            raise ValueError("a worker sent what no worker sends")
        return packet

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
        code = await self._process.wait()
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"
