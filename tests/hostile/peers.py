"""A source that misbehaves on real sockets, against a real pageferryd and its real QEMU."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pageferry.migration.journal import JournalError, read_journal
from pageferry.model.blocks import PAGE_BYTES
from pageferry.net.data import connect_data
from pageferry.testing.lab.monitor import LabMonitor
from pageferry.wire import messages as m
from pageferry.wire.frames import FrameDecoder, encode_head
from pageferry.wire.messages import encode
from tests.recovery.bench import Daemon, daemon, eventually

MACHINE = "pc-i440fx-7.2"
RAM_BYTES = 32 << 20
PAGES = RAM_BYTES // PAGE_BYTES
TIMEOUT_S = 20.0


@dataclass(slots=True)
class Victim:
    """A destination: its daemon, and a QEMU that waits for a guest named web."""

    daemon: Daemon
    qmp: Path
    ram: Path
    qemu: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    migrations: int = 0

    def status(self) -> str:
        with contextlib.closing(LabMonitor(self.qmp)) as monitor:
            return str(monitor.execute("query-status")["status"])

    def is_idle(self) -> bool:
        """Whether no migration runs here any more."""
        with contextlib.closing(LabMonitor(self.daemon.folder / "control.sock")) as monitor:
            found = monitor.execute("query-migrations")
        return all(each["status"] in ("completed", "failed", "cancelled") for each in found)

    def is_gone(self) -> bool:
        return self.qemu is None or self.qemu.poll() is not None

    def start_qemu(self) -> None:
        """Start it, unless it still waits."""
        if not self.is_gone():
            return
        self.qmp.unlink(missing_ok=True)
        self.qemu = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-display", "none", "-nodefaults", "-S"),
                *("-machine", f"{MACHINE},memory-backend=ram0", "-m", "32M"),
                "-object",
                f"memory-backend-file,id=ram0,mem-path={self.ram},size=32M,share=on",
                *("-incoming", "defer", "-qmp", f"unix:{self.qmp},server=on,wait=off"),
            ],
            stdin=subprocess.DEVNULL,
        )
        eventually(self.qmp.exists, "QEMU is up")

    def end(self) -> None:
        if self.qemu is not None:
            self.qemu.kill()
            self.qemu.wait(20)
        self.ram.unlink(missing_ok=True)

    def has_given_up(self, migration_id: str) -> bool:
        """Whether the journal says that the guest never runs here."""
        path = self.daemon.state_dir / f"{migration_id}.destination.journal"
        with contextlib.suppress(JournalError):
            state = read_journal(path)
            return state is not None and state.phase == "aborted"
        return False


@contextlib.contextmanager
def victim(folder: Path) -> Iterator[Victim]:
    """A daemon that is up, and its QEMU; both ended at the end of the block."""
    folder.mkdir(exist_ok=True)
    qmp, ram = folder / "web.qmp", Path(f"/dev/shm/pageferry-hostile-{os.getpid()}")
    with daemon(folder) as its_daemon:
        made = Victim(its_daemon, qmp, ram)
        try:
            its_daemon.start(guests={"web": qmp})
            its_daemon.wait_ready()
            yield made
        finally:
            made.end()


class Speaker:
    """One end of a control connection, of which the other is an agent."""

    control: socket.socket

    def __init__(self) -> None:
        self._decoder = FrameDecoder()

    def say(self, *messages: m.Message) -> None:
        for message in messages:
            self.control.sendall(encode(message))

    def hear(self) -> m.Message | None:
        """The next message but Ping, which is answered; None at the end of the connection."""
        while True:
            message = self._decoder.next_frame()
            if message is None:
                try:
                    data = self.control.recv(1 << 16)
                except ConnectionError:
                    return None
                if not data:
                    return None
                self._decoder.feed(data)
            elif isinstance(message, m.Ping):
                with contextlib.suppress(OSError):
                    self.say(m.Pong(message.sequence))
            else:
                return message

    def expect(self, kind: type[m.Message]) -> m.Message:
        message = self.hear()
        assert isinstance(message, kind), message
        return message


class Source(Speaker):
    """One hostile source. Says anything; knows how to get to where it wants to misbehave."""

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self.victim = victim
        victim.migrations += 1
        self.migration_id = f"{os.getpid():08x}{victim.migrations:024x}"
        self.control = self.connect()
        self.channels: list[socket.socket] = []
        self.ready: m.Ready | None = None

    def connect(self) -> socket.socket:
        sock = connect_data("127.0.0.1", self.victim.daemon.port, TIMEOUT_S)
        sock.settimeout(TIMEOUT_S)
        return sock

    def close(self) -> None:
        for sock in (self.control, *self.channels):
            sock.close()

    # Saying.

    def hello(self, minimum: int = 1, maximum: int = 1) -> m.Hello:
        return m.Hello(minimum, maximum, self.migration_id, "web", "hostile")

    def describe(self, **changes: object) -> m.Describe:
        values: dict[str, object] = {
            "machine": MACHINE,
            "qemu_version": "7.2.0",
            "blocks": (("ram0", RAM_BYTES),),
            "guest_running": True,
            "channels": 2,
            "verify": False,
            **changes,
        }
        return m.Describe(**values)  # type: ignore[arg-type]

    def send(self, channel: int, message: m.Message, payload: bytes = b"") -> None:
        self.channels[channel].sendall(encode_head(message, len(payload)) + payload)

    # Hearing.

    def last_words(self) -> list[m.Message]:
        """Everything until the connection ends."""
        words: list[m.Message] = []
        while (message := self.hear()) is not None:
            words.append(message)
            if isinstance(message, m.Aborted):
                self.control.close()  # it waits a while for us to read that
                break
        return words

    # Getting there.

    def introduce(self, **changes: object) -> None:
        """Up to Ready."""
        self.say(self.hello())
        self.expect(m.HelloReply)
        self.say(self.describe(**changes))
        ready = self.expect(m.Ready)
        assert isinstance(ready, m.Ready)
        self.ready = ready

    def attach(self, channel: int, token: bytes | None = None) -> socket.socket:
        """One more data connection."""
        assert self.ready is not None
        sock = self.connect()
        message = m.Attach(self.migration_id, token or self.ready.token, channel)
        sock.sendall(encode_head(message))
        return sock

    def start(self, **changes: object) -> None:
        """Up to Started: data may flow."""
        self.introduce(**changes)
        assert self.ready is not None
        self.channels = [self.attach(index) for index in range(self.ready.channels)]
        self.expect(m.Started)

    def round(self, number: int, *, final: bool = False) -> None:
        """A round without a page."""
        for index in range(len(self.channels)):
            self.send(index, m.Barrier(number, 0))
        self.say(m.RoundEnd(number, [0] * len(self.channels), final))
        self.expect(m.RoundAck)


def is_closed(sock: socket.socket) -> bool:
    """Wait for the other side to close it."""
    try:
        while sock.recv(1 << 16):
            continue
    except ConnectionError:
        return True
    return True


def resident_bytes(pid: int) -> int:
    """How much memory a process has now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    pytest.fail(f"process {pid} has no memory")


def highest_resident_bytes(pid: int, seconds: float) -> int:
    """The most that it has within *seconds*."""
    deadline_s, highest = time.monotonic() + seconds, 0
    while time.monotonic() < deadline_s:
        highest = max(highest, resident_bytes(pid))
        time.sleep(0.02)
    return highest
