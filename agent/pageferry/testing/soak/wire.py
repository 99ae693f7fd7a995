"""The Linux guest's network: whoever listens there echoes each word, and remembers who said it.

QEMU's ``-netdev socket,udp=`` carries each Ethernet frame as one datagram. Each QEMU sends from an
address of its own, so the listener knows in which of them the guest runs.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pageferry.testing.lab.cleanup import undone_by
from pageferry.testing.lab.daemons import LOOPBACK
from pageferry.testing.lab.qemus import Machine

HEAD = struct.Struct("!6s6sH")
STAMP = struct.Struct("<QQ")
STAMPS = 32
WORD_TYPE, ECHO_TYPE = 0x88B5, 0x88B6
LISTENER_ADDRESS = b"\x02\0\0\0\0\x02"
WORD_SALT = 0x64726F77
"""As in lab/linux/talk.c."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word, and the UDP port of the QEMU whose guest said it."""

    port: int
    number: int


class Listener:
    """Echoes, and keeps what is wrong in :attr:`wrong`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((LOOPBACK, 0))
        self._ports = {name: _free_port() for name in ("source", "destination")}
        self._last = Word(0, 0)
        self._left: set[int] = set()
        self.heard = 0
        self.wrong: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def arguments(self, name: str) -> tuple[str, ...]:
        """QEMU's arguments that give the QEMU of that name a network device at this listener."""
        return ("-netdev", self._netdev(name), "-device", "virtio-net-pci,netdev=net0,romfile=")

    def change(self, name: str) -> Callable[[Machine], Machine]:
        """What makes the machine of one of the two QEMUs that of the other one."""
        theirs, others = self._netdev(name), {self._netdev(each) for each in self._ports}

        def changed(machine: Machine) -> Machine:
            arguments = tuple(theirs if each in others else each for each in machine.arguments)
            return replace(machine, arguments=arguments)

        return changed

    def _netdev(self, name: str) -> str:
        here = f"{LOOPBACK}:{self._socket.getsockname()[1]}"
        return f"socket,id=net0,udp={here},localaddr={LOOPBACK}:{self._ports[name]}"

    def begin_step(self) -> None:
        """A new step: from now on the guest may change its host once more."""
        self._left = set()

    def close(self) -> None:
        """Hear no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                frame, sender = self._socket.recvfrom(65536)
                self._take(frame, sender)

    def _take(self, frame: bytes, sender: tuple[str, int]) -> None:
        if len(frame) < HEAD.size + STAMPS * STAMP.size:
            return
        everybody, _source, kind = HEAD.unpack_from(frame)
        if kind != WORD_TYPE:
            return
        stamps = frame[HEAD.size : HEAD.size + STAMPS * STAMP.size]
        number = STAMP.unpack_from(stamps)[1]
        self._judge(Word(sender[1], number), stamps)
        echo = HEAD.pack(everybody, LISTENER_ADDRESS, ECHO_TYPE) + stamps
        self._socket.sendto(echo, sender)

    def _judge(self, word: Word, stamps: bytes) -> None:
        self.heard += 1
        last = self._last
        if stamps != STAMP.pack(WORD_SALT, word.number) * STAMPS:
            self.wrong.append(f"word {word.number} is damaged")
        if last.port and word.number not in (last.number, last.number + 1):
            self.wrong.append(f"word {word.number} follows {last.number}")
        if last.port not in (0, word.port):
            self._left.add(last.port)
        if word.port in self._left:
            self.wrong.append(f"word {word.number} comes from a host that the guest had left")
        self._last = word


@contextlib.contextmanager
def listener() -> Iterator[Listener]:
    """A listener, and the network of one guest."""
    made = Listener()
    with undone_by(made.close):
        yield made


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
