"""The bandwidth cap on real sockets: what arrives in each tenth of a second."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import PageSet
from pageferry.kernel.residency import CachestatReader
from pageferry.migration.channel import Channel
from pageferry.migration.guest_ram import CarriedBlock
from pageferry.migration.progress import Progress
from pageferry.migration.sending import RamSender
from pageferry.model.blocks import PAGE_BYTES, RamBlock

MIB = 1024 * 1024
WINDOW_S = 0.1
CHANNELS = 2


def connected() -> tuple[socket.socket, socket.socket]:
    """A TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _address = server.accept()
    return here, there


class Arrivals:
    """What has arrived on a connection, and when."""

    def __init__(self, sock: socket.socket) -> None:
        self.chunks: list[tuple[float, int]] = []
        self._socket = sock
        self.thread = threading.Thread(target=self._receive)
        self.thread.start()

    def _receive(self) -> None:
        buffer = bytearray(256 * 1024)
        while length := self._socket.recv_into(buffer):
            self.chunks.append((time.monotonic(), length))
        self._socket.close()


def windows(arrivals: list[Arrivals]) -> list[float]:
    """Bytes per second in each whole window but the first and the last."""
    chunks = sorted(chunk for each in arrivals for chunk in each.chunks)
    began_s = chunks[0][0]
    totals: dict[int, int] = {}
    for at_s, length in chunks:
        window = int((at_s - began_s) / WINDOW_S)
        totals[window] = totals.get(window, 0) + length
    return [totals.get(window, 0) / WINDOW_S for window in range(1, max(totals))]


@pytest.mark.parametrize("rate", [10 * MIB, 100 * MIB])
def test_the_cap_is_kept_in_every_tenth_of_a_second(rate: int) -> None:
    pages = rate * 2 // PAGE_BYTES
    fd = os.memfd_create("ram")
    os.ftruncate(fd, pages * PAGE_BYTES)
    mapping = RamMapping(fd, 0, pages * PAGE_BYTES)
    for page in range(0, pages, 256):
        os.pwrite(fd, b"\x01" * PAGE_BYTES * min(256, pages - page), page * PAGE_BYTES)
    os.close(fd)
    pairs = [connected() for _channel in range(CHANNELS)]
    arrivals = [Arrivals(there) for _here, there in pairs]
    channels = [Channel(here, index) for index, (here, _there) in enumerate(pairs)]
    block = CarriedBlock(RamBlock("mem0", pages * PAGE_BYTES), mapping, (), 0, 0)
    sender = RamSender([block], channels, CachestatReader(), Progress("1", "guest", 0))
    sender.bandwidth.set_rate(rate)
    everything = PageSet(pages)
    everything.add(0, pages)
    began_s = time.monotonic()
    sender.send_pages(1, [everything])
    took_s = time.monotonic() - began_s
    for channel in channels:
        channel.shutdown()  # what is on its way arrives before the end; to close would drop it
    for each in arrivals:
        each.thread.join()
    for channel in channels:
        channel.close()
    mapping.close()
    found = windows(arrivals)
    print(f"{rate / MIB:.0f} MiB/s: windows {min(found) / MIB:.1f} to {max(found) / MIB:.1f}")
    assert pages * PAGE_BYTES / took_s == pytest.approx(rate, rel=0.05)
    # 10 ms may be caught up, and one step is as long as it is. When the machine holds us up for
    # longer than that, a window stays below; above it never gets.
    assert max(found) <= 1.13 * rate
    assert sorted(found)[len(found) // 2] == pytest.approx(rate, rel=0.05)
