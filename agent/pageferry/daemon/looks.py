"""Looks at guests that no migration needs: the doctor's, for an estimate, of a residency.

QEMU's QMP socket takes one client at a time. So looks wait for each other, and a migration waits
for none: it interrupts the look at its guest, which changes nothing there and can be had again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from pageferry.daemon.guests import Guest
from pageferry.model.errors import RefusedError

TURN_S: Final = 20.0
"""How long a look waits for the one before it. Most take a second; estimates take their time."""

GIVE_WAY_S: Final = 5.0
"""How long a migration waits for a look that was interrupted to let go of QEMU."""


@dataclass(slots=True)
class _Look:
    why: str
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


class Looks:
    """At most one at each guest. *check_free* raises RefusedError when a migration has it."""

    def __init__(self, check_free: Callable[[Guest], None]) -> None:
        self._check_free = check_free
        self._looks: dict[str, _Look] = {}

    @asynccontextmanager
    async def at(self, guest: Guest, why: str) -> AsyncIterator[None]:
        """Look at *guest* within the block.

        Raises RefusedError when a migration has the guest, also when it comes within the block, and
        when another look does not end.
        """
        await self._turn(guest)
        look = self._looks[guest.key] = _Look(why)
        try:
            with look.scope:
                yield
        finally:
            del self._looks[guest.key]
            look.ended.set()
        if look.scope.cancelled_caught:
            raise RefusedError(
                f"a migration of guest {guest.label} has begun, which goes before looking at it",
                advice="look again when it is over; `pageferry status` shows how far it is",
            )

    async def give_way(self, guest: Guest) -> None:
        """Interrupt looks at *guest* for a migration. When this returns there is none, up to the
        next checkpoint. Raises RefusedError when one does not end."""
        with trio.move_on_after(GIVE_WAY_S):
            while (look := self._looks.get(guest.key)) is not None:
                look.scope.cancel()
                await look.ended.wait()
        self._check_not_looked_at(guest)

    async def _turn(self, guest: Guest) -> None:
        with trio.move_on_after(TURN_S):
            while (look := self._looks.get(guest.key)) is not None:
                self._check_free(guest)
                await look.ended.wait()
        self._check_free(guest)
        self._check_not_looked_at(guest)

    def _check_not_looked_at(self, guest: Guest) -> None:
        look = self._looks.get(guest.key)
        if look is not None:
            raise RefusedError(
                f"guest {guest.label} is in use: {look.why}", advice="try again in a moment"
            )
