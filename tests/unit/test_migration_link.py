"""The link between the daemon and a worker process."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from pageferry.migration.link import MAX_DESCRIPTORS, PACKET_BYTES, Link, LinkLostError, socket_pair


@asynccontextmanager
async def link_pair() -> AsyncIterator[tuple[Link, Link]]:
    ours, theirs = map(Link, socket_pair())
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


async def test_packets_stay_whole_and_in_order_both_ways() -> None:
    async with link_pair() as (ours, theirs):
        for number in range(20):
            await ours.send({"type": "set", "number": number, "text": "ä" * number})
            await theirs.send({"type": "status", "number": number})
        for number in range(20):
            expected = {"type": "set", "number": number, "text": "ä" * number}
            assert await theirs.receive() == (expected, [])
            assert await ours.receive() == ({"type": "status", "number": number}, [])


async def test_descriptors_come_as_duplicates_that_close_on_exec() -> None:
    reading, writing = os.pipe()
    async with link_pair() as (ours, theirs):
        await ours.send({"type": "channel"}, [writing])
        os.close(writing)
        packet, fds = await theirs.receive()
    assert packet == {"type": "channel"}
    assert len(fds) == 1
    assert not os.get_inheritable(fds[0])
    os.write(fds[0], b"through it")
    os.close(fds[0])
    assert os.read(reading, 100) == b"through it"
    assert os.read(reading, 100) == b""
    os.close(reading)


async def test_as_many_descriptors_as_allowed() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    async with link_pair() as (ours, theirs):
        await ours.send({}, [null] * MAX_DESCRIPTORS)
        _, fds = await theirs.receive()
    assert len(fds) == MAX_DESCRIPTORS
    for fd in (null, *fds):
        os.close(fd)


async def test_longest_packet_passes_and_a_longer_one_is_refused() -> None:
    async with link_pair() as (ours, theirs):
        longest = {"x": "y" * (PACKET_BYTES - len('{"x":""}'))}
        await ours.send(longest)
        assert (await theirs.receive())[0] == longest
        with pytest.raises(ValueError, match="link packet"):
            await ours.send({"x": longest["x"] + "y"})
        await ours.send({"still": "works"})
        assert (await theirs.receive())[0] == {"still": "works"}


async def test_other_end_gone() -> None:
    async with link_pair() as (ours, theirs):
        theirs.close()
        with pytest.raises(LinkLostError):
            await ours.send({"type": "job"})
        with pytest.raises(LinkLostError):
            await ours.receive()


async def test_other_end_gone_while_waiting() -> None:
    async with link_pair() as (ours, theirs), trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(LinkLostError):
                await ours.receive()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        theirs.close()


async def test_what_was_said_before_the_end_is_heard() -> None:
    async with link_pair() as (ours, theirs):
        await theirs.send({"type": "finished"})
        theirs.close()
        assert await ours.receive() == ({"type": "finished"}, [])
        with pytest.raises(LinkLostError):
            await ours.receive()


async def test_cancelled_receive_loses_nothing() -> None:
    async with link_pair() as (ours, theirs):
        with trio.move_on_after(0.01) as scope:
            await theirs.receive()
        assert scope.cancelled_caught
        await ours.send({"type": "cancel"})
        assert (await theirs.receive())[0] == {"type": "cancel"}


async def test_cancelled_send_sends_all_or_nothing() -> None:
    async with link_pair() as (ours, theirs):
        packet = {"x": "y" * 100_000}
        sent = 0
        with trio.move_on_after(0.05):
            while True:
                await ours.send(packet)
                sent += 1
        assert sent > 0
        for _ in range(sent):
            assert (await theirs.receive())[0] == packet
        with trio.move_on_after(0.01) as nothing_left:
            await theirs.receive()
        assert nothing_left.cancelled_caught


async def test_ends_are_a_seqpacket_pair() -> None:
    ours, theirs = socket_pair()
    with ours, theirs:
        assert ours.type & socket.SOCK_SEQPACKET == socket.SOCK_SEQPACKET
        assert not theirs.get_inheritable()


async def test_sending_on_a_link_that_was_closed_here_is_a_lost_link() -> None:
    async with link_pair() as (ours, _theirs):
        ours.close()
        with pytest.raises(LinkLostError):
            await ours.send({"type": "cancel"})


async def test_last_word_is_heard_though_the_other_end_left_something_unread() -> None:
    async with link_pair() as (ours, theirs):
        await ours.send({"type": "cancel"})
        await theirs.send({"type": "status"})
        await theirs.send({"type": "finished"})
        theirs.close()
        assert (await ours.receive())[0] == {"type": "status"}
        assert (await ours.receive())[0] == {"type": "finished"}
        with pytest.raises(LinkLostError):
            await ours.receive()
