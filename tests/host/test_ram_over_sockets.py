"""Sending and receiving guest RAM over real sockets between two memory files, without QEMU."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import PageSet
from pageferry.kernel.residency import CachestatReader, data_pages
from pageferry.migration.channel import Channel
from pageferry.migration.guest_ram import CarriedBlock
from pageferry.migration.progress import Progress
from pageferry.migration.receiving import RamReceiver
from pageferry.migration.sending import RamSender
from pageferry.model.blocks import PAGE_BYTES, RamBlock
from pageferry.model.errors import PeerLostError, RemoteProtocolError
from pageferry.wire.frames import encode_head
from pageferry.wire.messages import Message, Pages, RoundEnd, Zeros

PAGES = 2048
CHANNELS = 2


@dataclass
class Pair:
    """A source's sender and a destination's receiver, connected, with their files."""

    source: CarriedBlock
    destination: CarriedBlock
    sender: RamSender
    receiver: RamReceiver
    source_sockets: list[socket.socket]
    errors: list[Exception]
    moved: threading.Condition

    def fill(self, pages: dict[int, bytes]) -> None:
        for page, content in pages.items():
            os.pwrite(self.source.mapping.fd, content, page * PAGE_BYTES)

    def end_round(self, number: int) -> None:
        frames = self.sender.finish_round(number)
        self.receiver.round_ends(RoundEnd(round=number, frames_per_channel=frames, final=False))
        with self.moved:
            assert self.moved.wait_for(
                lambda: self.receiver.round_is_placed() or bool(self.errors), timeout=20
            )
        assert not self.errors
        self.receiver.next_round()

    def wait_error(self) -> Exception:
        with self.moved:
            assert self.moved.wait_for(lambda: bool(self.errors), timeout=20)
        return self.errors[0]


def _block(name: str, pages: int) -> CarriedBlock:
    fd = os.memfd_create(name)
    os.ftruncate(fd, pages * PAGE_BYTES)
    mapping = RamMapping(fd, 0, pages * PAGE_BYTES)
    os.close(fd)
    return CarriedBlock(RamBlock("mem0", pages * PAGE_BYTES), mapping, (), 0, 0)


@pytest.fixture
def pair() -> Iterator[Pair]:
    source, destination = _block("source", PAGES), _block("destination", PAGES)
    ends = [socket.socketpair() for _ in range(CHANNELS)]
    channels = [Channel(ours, index) for index, (ours, _theirs) in enumerate(ends)]
    progress = Progress("00", "g", 0)
    reader = CachestatReader()
    receiver = RamReceiver([destination], reader, progress, CHANNELS)
    pair = Pair(
        source,
        destination,
        RamSender([source], channels, reader, progress),
        receiver,
        [ours for ours, _theirs in ends],
        [],
        threading.Condition(),
    )

    def moved() -> None:
        with pair.moved:
            pair.moved.notify_all()

    def serve(sock: socket.socket, index: int) -> None:
        try:
            receiver.serve(sock, index, moved)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            with pair.moved:
                pair.errors.append(error)
                pair.moved.notify_all()

    threads = [
        threading.Thread(target=serve, args=(theirs, index))
        for index, (_ours, theirs) in enumerate(ends)
    ]
    for thread in threads:
        thread.start()
    yield pair
    receiver.stop()
    pair.sender.stop()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    for ours, theirs in ends:
        ours.close()
        theirs.close()
    source.mapping.close()
    destination.mapping.close()


def _contents(carried: CarriedBlock) -> bytes:
    return os.pread(carried.mapping.fd, carried.block.length_bytes, 0)


def _random_pages(seed: int, count: int) -> dict[int, bytes]:
    rng = random.Random(seed)
    chosen = rng.sample(range(PAGES), count)
    return {page: rng.randbytes(PAGE_BYTES) for page in chosen}


def test_contents_arrive_and_holes_and_zeros_take_no_memory(pair: Pair) -> None:
    filled = _random_pages(1, 700)
    zeros = [page for page in range(PAGES) if page not in filled][:200]
    pair.fill(filled)
    pair.fill(dict.fromkeys(zeros, bytes(PAGE_BYTES)))
    pair.sender.send_pages(1, [data_pages(pair.source.mapping)])
    pair.end_round(1)
    assert _contents(pair.destination) == _contents(pair.source)
    present = data_pages(pair.destination.mapping)
    assert {page for page in range(PAGES) if page in present} == set(filled)
    assert pair.sender.sent[0].count() == 700
    assert pair.sender.settled[0].count() == 900


def test_newer_versions_win_round_after_round(pair: Pair) -> None:
    for number in range(1, 9):
        changed = _random_pages(number, 300)
        pair.fill(changed)
        pages = PageSet(PAGES)
        for page in changed:
            pages.add(page, 1)
        pair.sender.send_pages(number, [pages])
        pair.end_round(number)
        assert _contents(pair.destination) == _contents(pair.source)


def test_pages_given_back_become_holes(pair: Pair) -> None:
    pair.fill(_random_pages(3, 100))
    everything = data_pages(pair.source.mapping)
    pair.sender.send_pages(1, [everything])
    pair.end_round(1)
    pair.sender.send_holes(2, [everything])
    pair.end_round(2)
    assert not data_pages(pair.destination.mapping)
    assert not pair.sender.sent[0]


def test_clear_leaves_only_holes(pair: Pair) -> None:
    os.pwrite(pair.destination.mapping.fd, b"rom" * 5000, 0xC0000)
    pair.receiver.clear()
    assert not data_pages(pair.destination.mapping)


def test_a_pass_ends_when_the_connection_does(pair: Pair) -> None:
    pair.fill(_random_pages(4, 1500))
    pair.receiver.stop()
    with pytest.raises(PeerLostError):
        pair.sender.send_pages(1, [data_pages(pair.source.mapping)])


def _say(pair: Pair, message: Message, payload: bytes = b"") -> None:
    pair.source_sockets[0].sendall(encode_head(message, len(payload)) + payload)


def test_peer_sends_run_past_end_of_block(pair: Pair) -> None:
    _say(pair, Pages(block=0, round=1, runs=[PAGES - 1, 2], cold=False), bytes(2 * PAGE_BYTES))
    assert isinstance(pair.wait_error(), RemoteProtocolError)
    assert os.fstat(pair.destination.mapping.fd).st_size == PAGES * PAGE_BYTES


def test_peer_names_unknown_block(pair: Pair) -> None:
    _say(pair, Zeros(block=1, round=1, runs=[0, 1]))
    assert isinstance(pair.wait_error(), RemoteProtocolError)


def test_peer_sends_frame_of_another_round(pair: Pair) -> None:
    _say(pair, Pages(block=0, round=2, runs=[0, 1], cold=False), b"x" * PAGE_BYTES)
    assert isinstance(pair.wait_error(), RemoteProtocolError)
    assert not data_pages(pair.destination.mapping)


def test_peer_miscounts_at_the_barrier(pair: Pair) -> None:
    pair.fill(_random_pages(5, 10))
    pair.sender.send_pages(1, [data_pages(pair.source.mapping)])
    pair.sender.finish_round(1)
    with pair.moved:
        assert pair.moved.wait_for(lambda: bool(pair.errors), timeout=0.2) is False
    end = RoundEnd(round=1, frames_per_channel=[0, 9], final=False)
    with pytest.raises(RemoteProtocolError):
        pair.receiver.round_ends(end)
