"""Two exchanges with a wire between them on which messages can be on their way, and cross."""

from __future__ import annotations

from collections import deque

from pageferry.wire import messages as m
from pageferry.wire.session import Exchange, Role

HELLO = m.Hello(1, 1, "ab" * 8, "web", "pageferry 0.1.0")
DESCRIBE = m.Describe("pc-i440fx-7.2", "7.2.22", (("ram", 4096),), True, 2, False)
REPLY = m.HelloReply(1, "pageferry 0.1.0")
READY = m.Ready(bytes(32), 2)
ABORT = m.Abort("cancelled", "the operator cancelled it", "")
DIGEST = m.Digest({"ram": "ab" * 32})
S, D = Role.SOURCE, Role.DESTINATION


def round_end(number: int, *, final: bool = False) -> m.RoundEnd:
    return m.RoundEnd(number, [0, 0], final)


def round_ack(number: int) -> m.RoundAck:
    return m.RoundAck(number, 0, 0, 0, 0)


OPENING: list[tuple[Role, m.Message]] = [
    (S, HELLO),
    (D, REPLY),
    (S, DESCRIBE),
    (D, READY),
    (D, m.Started()),
]
ROUNDS: list[tuple[Role, m.Message]] = [
    (S, round_end(1)),
    (D, round_ack(1)),
    (S, round_end(2)),
    (D, round_ack(2)),
]
DEVICE: list[tuple[Role, m.Message]] = [
    (S, m.PrepareDevice()),
    (D, m.DeviceReady()),
    (S, m.DeviceData(b"setup")),
    (S, round_end(3, final=True)),
    (D, m.DeviceData(b"return path")),
    (D, round_ack(3)),
    (S, m.DeviceData(b"state")),
    (S, m.DeviceEnd()),
    (D, m.DeviceEnd()),
    (D, m.DeviceLoaded()),
]
WHOLE = [*OPENING, *ROUNDS, *DEVICE, (S, m.Commit()), (D, m.Running("running"))]


class Pair:
    """Both sides. ``say`` puts a message on the wire, ``arrive`` takes the oldest off it."""

    def __init__(self, script: list[tuple[Role, m.Message]] | None = None) -> None:
        self.sides = {role: Exchange(role) for role in Role}
        self.under_way: dict[Role, deque[m.Message]] = {role: deque() for role in Role}
        for speaker, message in script or []:
            self.tell(speaker, message)

    def say(self, speaker: Role, message: m.Message) -> None:
        """*speaker* says it; it has not arrived yet."""
        self.sides[speaker].send(message)
        self.under_way[speaker].append(message)

    def arrive(self, speaker: Role) -> m.Message:
        """The oldest message of *speaker* that is under way reaches the other side."""
        message = self.under_way[speaker].popleft()
        self.sides[speaker.other].receive(message)
        return message

    def tell(self, speaker: Role, message: m.Message) -> None:
        """Say it, and let it arrive."""
        self.say(speaker, message)
        while self.under_way[speaker]:
            self.arrive(speaker)
