"""Looks at guests: one after the other, and none in a migration's way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from pageferry.daemon.guests import Guest
from pageferry.daemon.looks import TURN_S, Looks
from pageferry.model.errors import RefusedError

WEB = Guest("web", Path("/run/web.qmp"))


@dataclass
class Host:
    """Guests that are in migrations."""

    migrating: set[str] = field(default_factory=set)
    looks: Looks = field(init=False)

    def __post_init__(self) -> None:
        self.looks = Looks(self._check_free)

    def _check_free(self, guest: Guest) -> None:
        if guest.key in self.migrating:
            raise RefusedError("it is in a migration already", advice="wait for it")

    async def look(self, seconds: float, done: Callable[[], None] = lambda: None) -> None:
        async with self.looks.at(WEB, "somebody is looking at it"):
            await trio.sleep(seconds)
        done()


async def test_looks_wait_for_each_other(autojump_clock: trio.testing.MockClock) -> None:
    host = Host()
    ends: list[float] = []
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(host.look, 2.0, lambda: ends.append(trio.current_time() - began_s))
    assert ends == pytest.approx([2.0, 4.0, 6.0])


async def test_a_look_does_not_wait_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    host = Host()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.look, 2 * TURN_S)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RefusedError, match="in use: somebody is looking at it"):
            await host.look(1.0)
        nursery.cancel_scope.cancel()


async def test_other_guests_are_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    host = Host()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.look, 10.0)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1.0):
            async with host.looks.at(Guest("db", Path("/run/db.qmp")), "it is looked at"):
                pass


async def test_a_migration_interrupts_the_look_and_those_that_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host = Host()
    told: list[str] = []

    async def look() -> None:
        with pytest.raises(RefusedError) as caught:
            await host.look(10.0)
        told.append(caught.value.message)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(look)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1.0):
            await host.looks.give_way(WEB)
        host.migrating.add(WEB.key)
    assert len(told) == 3
    assert any("has begun" in each for each in told), told


async def test_a_look_that_had_come_to_its_end_keeps_what_it_saw(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host = Host()
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            async with host.looks.at(WEB, "it is looked at"):
                with trio.CancelScope(shield=True):
                    await trio.sleep(1.0)

        nursery.start_soon(look)
        await trio.testing.wait_all_tasks_blocked()
        await host.looks.give_way(WEB)


async def test_a_look_that_does_not_end_refuses_the_migration(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host = Host()
    async with trio.open_nursery() as nursery:

        async def stuck() -> None:
            async with host.looks.at(WEB, "it hangs"):
                with trio.CancelScope(shield=True):
                    await trio.sleep(TURN_S)

        nursery.start_soon(stuck)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RefusedError, match="in use: it hangs"):
            await host.looks.give_way(WEB)


async def test_a_migration_that_runs_is_not_looked_at() -> None:
    host = Host(migrating={WEB.key})
    with pytest.raises(RefusedError, match="already"):
        await host.look(0.0)
