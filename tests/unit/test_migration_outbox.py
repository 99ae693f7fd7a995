"""A worker that has something to say to a daemon that may not listen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from pageferry.migration.link import Link, socket_pair
from pageferry.migration.outbox import MAX_WAITING, Outbox
from pageferry.migration.tuning import Tuning
from pageferry.model.errors import RefusedError
from pageferry.model.parameters import CHANGEABLE, KEYS, MigrationParameters


@asynccontextmanager
async def outbox() -> AsyncIterator[tuple[Outbox, Link]]:
    ours, theirs = map(Link, socket_pair())
    box = Outbox(theirs)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run)
            yield box, ours
            nursery.cancel_scope.cancel()
    finally:
        ours.close()
        theirs.close()


async def test_nothing_that_is_said_waits_and_statuses_give_way_to_newer_ones() -> None:
    async with outbox() as (box, daemon):
        padding = "x" * 10_000
        for number in range(200):
            box.report({"type": "status", "number": number, "padding": padding})
            await trio.testing.wait_all_tasks_blocked()
        box.say({"type": "event", "number": 1})
        box.say({"type": "finished"})
        with trio.fail_after(5):
            packets = [(await daemon.receive())[0]]
            while packets[-1]["type"] != "finished":
                packets.append((await daemon.receive())[0])
            await box.emptied()
            last = (await daemon.receive())[0]
        statuses = [each["number"] for each in (*packets, last) if each["type"] == "status"]
        assert statuses == sorted(statuses)
        assert statuses[-1] == 199
        assert len(statuses) < 100  # the link's buffer holds 384 KiB
        assert [each["type"] for each in packets if each["type"] != "status"] == [
            "event",
            "finished",
        ]


async def test_lost_link_frees_whoever_waits() -> None:
    async with outbox() as (box, daemon):
        for number in range(MAX_WAITING + 10):
            box.say({"type": "event", "number": number, "padding": "x" * 1000})
        await trio.testing.wait_all_tasks_blocked()
        daemon.close()
        with trio.fail_after(5):
            await box.emptied()
        assert box.is_lost
        box.say({"type": "finished"})
        box.report({"type": "status"})
        await box.emptied()


def test_tuning_changes_what_can_be_changed_and_tells() -> None:
    tuning = Tuning(MigrationParameters())
    told: list[MigrationParameters] = []
    tuning.on_change(told.append)
    tuning.change({"downtime-limit": 5, "page-in-window": 1 << 20})
    assert (tuning.parameters.downtime_limit_ms, tuning.parameters.window_bytes) == (5, 1 << 20)
    assert told == [tuning.parameters]
    for values in ({"channels": 3}, {"residency-way": "mincore"}, {"timeout": -1}, {"frob": 1}):
        with pytest.raises(RefusedError):
            tuning.change({"downtime-limit": 7, **values})
    assert tuning.parameters.downtime_limit_ms == 5
    assert len(told) == 1
    assert set(KEYS.values()) > CHANGEABLE
