"""What strangers and peers can cost: memory, measured from outside the daemon and a worker."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator

import msgpack
import pytest

from pageferry.testing.lab.daemons import worker_pids
from pageferry.wire import messages as m
from pageferry.wire.frames import encode_head
from tests.hostile.peers import Source, Victim, highest_resident_bytes, resident_bytes, victim
from tests.recovery.bench import eventually
from tests.support import need

pytestmark = pytest.mark.root

STRANGERS = 300
SECONDS = 3.0

DAEMON_GROWTH_BYTES = 8 << 20
"""64 strangers with 4 KiB each, their tasks, and what an allocator does not give back at once."""

WORKER_GROWTH_BYTES = 48 << 20
"""A control connection: frames of 256 KiB as Python objects (65536 small numbers take 0.5 MiB as a
list), 16 of them waiting in the inbox, and pieces of device state of 1 MiB."""


@pytest.fixture(scope="module")
def shared_victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    need(shutil.which("qemu-system-x86_64") is not None, "needs qemu-system-x86_64")
    with victim(tmp_path_factory.mktemp("bounds")) as made:
        made.start_qemu()
        yield made


@contextlib.contextmanager
def crowd(members: int, act: Callable[[], None]) -> Iterator[None]:
    """Threads that do *act* again and again until the end of the block."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                act()

    threads = [threading.Thread(target=run) for _ in range(members)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_strangers_cannot_make_the_daemon_grow(shared_victim: Victim) -> None:
    """Hundreds at once that announce 4 GiB, promise the longest first message and do not finish it,
    and send noise without end."""
    assert shared_victim.daemon.process is not None
    pid, port = shared_victim.daemon.process.pid, shared_victim.daemon.port
    openings = (
        b"\x93\xce\xff\xff\xff\xff",
        b"\x93\xce\x00\x00\x10\x00" + bytes(4095),
        b"\x93\xce\x00\x00\x10\x00" + b"\xdd\x00\x00\xff\xff" * 819 + b"\xc6\x00\x00\x00\x00",
        b"\x00" * (1 << 20),
        encode_head(m.Hello(1, 1, "ab" * 16, "nobody", "x")),
        encode_head(m.Attach("ab" * 16, bytes(32), 0)),
        encode_head(m.Query("ab" * 16)),
    )
    number = iter(range(1 << 30))

    def act() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
            sock.sendall(openings[next(number) % len(openings)])
            sock.settimeout(0.5)
            sock.recv(1)

    with crowd(50, act):  # until its allocator has what such a crowd needs
        time.sleep(1)
    before = resident_bytes(pid)
    with crowd(STRANGERS, act):
        highest = highest_resident_bytes(pid, SECONDS)
    print(f"daemon: {before >> 10} KiB, then at most {highest >> 10} KiB; {next(number)} strangers")
    assert highest - before < DAEMON_GROWTH_BYTES
    assert next(number) > 500
    # And it still serves.
    source = Source(shared_victim)
    eventually(lambda: _introduced(source), "a good source is served")
    source.close()
    eventually(shared_victim.is_idle, "the migration is over")


def _introduced(source: Source) -> bool:
    """Strangers that are still within their five seconds may keep it out for a moment."""
    try:
        source.introduce()
    except (AssertionError, OSError):
        source.control.close()
        source.control = source.connect()
        return False
    return True


def _worker_of(victim: Victim) -> int:
    assert victim.daemon.process is not None
    children = worker_pids(victim.daemon.process.pid)
    assert len(children) == 1, children
    return children[0]


def _frame(values: dict[str, object]) -> bytes:
    meta: bytes = msgpack.packb(values)
    return b"\x93\xce" + len(meta).to_bytes(4, "big") + meta + b"\xc6\x00\x00\x00\x00"


HUGE = {
    "numbers": _frame({"t": "ping", "sequence": 1, "x": [2**33] * 27000}),
    "texts": _frame({"t": "ping", "sequence": 1, "x": ["y"] * 65536}),
    "long text": _frame({"t": "ping", "sequence": 1, "x": "y" * 260000}),
}
"""Frames at the limit, with a key that is ignored."""


@pytest.mark.parametrize("name", HUGE)
def test_a_peer_cannot_make_its_worker_grow(shared_victim: Victim, name: str) -> None:
    """Whatever it sends on the control connection, as fast as it can, and without reading."""
    shared_victim.start_qemu()
    source = Source(shared_victim)
    try:
        source.start()
        pid = _worker_of(shared_victim)
        before = resident_bytes(pid)
        stream = b"".join(
            HUGE[name].replace(b"\xa8sequence\x01", b"\xa8sequence" + bytes([count]), 1)
            for count in range(1, 100)
        )
        flood = threading.Thread(target=_flood, args=(source, stream))
        flood.start()
        highest = before
        deadline_s = time.monotonic() + SECONDS
        with contextlib.suppress(FileNotFoundError):
            while time.monotonic() < deadline_s:
                highest = max(highest, resident_bytes(pid))
                time.sleep(0.01)
        print(f"worker: {before >> 20} MiB, then at most {highest >> 20} MiB")
        assert highest - before < WORKER_GROWTH_BYTES
    finally:
        source.close()
        flood.join(20)
        eventually(shared_victim.is_idle, "the migration is over")


def _flood(source: Source, stream: bytes) -> None:
    with contextlib.suppress(OSError):
        source.control.sendall(stream)
