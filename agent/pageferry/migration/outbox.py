"""What a worker has to say to the daemon, kept until the link takes it.

A migration never waits for the daemon: it may be restarting, and the link's buffer be full. Of
status reports only the last one is kept; everything else is kept in order.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import trio

from pageferry.migration.link import Link, LinkLostError

MAX_WAITING: Final = 1000
"""Packets beside the status; the oldest go first. Events of a migration of a thousand rounds."""

Packet = dict[str, Any]


class Outbox:
    """Sends in a task of its own, `run`. `say` and `report` never wait."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: deque[Packet] = deque(maxlen=MAX_WAITING)
        self._status: Packet | None = None
        self._something = trio.Event()
        self._nothing = trio.Event()
        self._nothing.set()
        self.is_lost = False
        """Whether the link has ended; what is said then goes nowhere."""

    def report(self, status: Packet) -> None:
        """Send a status, unless a newer one comes before it could be sent."""
        if not self.is_lost:
            self._status = status
            self._wake()

    def say(self, packet: Packet) -> None:
        """Send a packet, after those that were said before."""
        if not self.is_lost:
            self._waiting.append(packet)
            self._wake()

    def lose(self) -> None:
        """The link has ended."""
        self.is_lost = True
        self._waiting.clear()
        self._status = None
        self._something.set()
        self._nothing.set()

    async def emptied(self) -> None:
        """Wait until everything is in the link, or the link has ended."""
        await self._nothing.wait()

    async def run(self) -> None:
        """Send until the link ends."""
        try:
            while not self.is_lost:
                await self._something.wait()
                self._something = trio.Event()
                while (packet := self._next()) is not None:
                    await self._link.send(packet)
                self._nothing.set()
        except LinkLostError:
            self.lose()

    def _next(self) -> Packet | None:
        if self._waiting:
            return self._waiting.popleft()
        packet, self._status = self._status, None
        return packet

    def _wake(self) -> None:
        if self._nothing.is_set():
            self._nothing = trio.Event()
        self._something.set()
