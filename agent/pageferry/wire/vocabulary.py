"""What two agents say to each other: one frozen dataclass for each message.

The source (S) carries a guest to the destination (D). The annotations say what a field may hold
(fields.py), session.py says which message may come when, messages.py makes bytes of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from pageferry.model.blocks import PAGE_BYTES
from pageferry.wire import fields


def _hyphenated(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


@dataclass(frozen=True)
class Message:
    """Base of all messages. ``name`` is the one on the wire."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        cls.name = _hyphenated(cls.__name__)

    @property
    def payload_bytes(self) -> int:
        """Length of the payload that belongs to this message."""
        return 0


@dataclass(frozen=True)
class Hello(Message):
    """S, first: which versions it speaks, and which guest it wants to bring."""

    min_version: fields.Version
    max_version: fields.Version
    migration_id: fields.MigrationId
    guest: fields.NameText
    agent: fields.NameText


@dataclass(frozen=True)
class HelloReply(Message):
    """D: the version that both speak from here on.

    ``wants_command_line``: it would start its QEMU by the source's, if that fits its own rules.
    """

    version: fields.Version
    agent: fields.NameText
    wants_command_line: fields.Bool = False


@dataclass(frozen=True)
class Describe(Message):
    """S: the guest. ``blocks`` are (name, length in bytes); frames number them in this order.

    ``command_line``: its QEMU's, where D wants it and it is known; else empty.
    """

    machine: fields.NameText
    qemu_version: fields.NameText
    blocks: fields.BlockTable
    guest_running: fields.Bool
    channels: fields.ChannelCount
    verify: fields.Bool
    command_line: fields.WordList = ()


@dataclass(frozen=True)
class Ready(Message):
    """D: attach ``channels`` data connections with this secret."""

    token: fields.Token
    channels: fields.ChannelCount

    def __repr__(self) -> str:  # a secret has no place in a log
        return f"Ready(channels={self.channels})"


@dataclass(frozen=True)
class Refuse(Message):
    """D: it will not take this guest; nothing was touched. The last message."""

    message: fields.ProseText
    advice: fields.ProseText


@dataclass(frozen=True)
class Started(Message):
    """D: all data connections are attached."""


@dataclass(frozen=True)
class RoundEnd(Message):
    """S: all frames of this round are on their way, so many on each channel.

    ``final``: the guest is stopped, and nothing is written any more but by QEMU itself.
    """

    round: fields.RoundNumber
    frames_per_channel: fields.FrameCounts
    final: fields.Bool


@dataclass(frozen=True)
class RoundAck(Message):
    """D: every page of this round is in its place. ``kept_pages`` of the cold ones stayed in."""

    round: fields.RoundNumber
    placed_pages: fields.Uint63
    zero_pages: fields.Uint63
    paged_out_pages: fields.Uint63
    kept_pages: fields.Uint63


@dataclass(frozen=True)
class PrepareDevice(Message):
    """S: make QEMU ready to receive device state."""


@dataclass(frozen=True)
class DeviceReady(Message):
    """D: QEMU awaits device state."""


@dataclass(frozen=True)
class DeviceData(Message):
    """Both: a piece of QEMU's own migration stream, from D that of its return path."""

    payload: bytes

    @property
    def payload_bytes(self) -> int:
        return len(self.payload)

    def __repr__(self) -> str:  # a MiB of guest state has no place in a log
        return f"DeviceData({len(self.payload)} bytes)"


@dataclass(frozen=True)
class DeviceEnd(Message):
    """Both: QEMU closed its stream, or the return path."""


@dataclass(frozen=True)
class DeviceLoaded(Message):
    """D: QEMU says *completed*; the guest is whole, paused, and waits for Commit."""


@dataclass(frozen=True)
class Verify(Message):
    """S: hash all RAM."""

    algorithm: fields.NameText


@dataclass(frozen=True)
class Digest(Message):
    """D: the hash of each RAM block."""

    digests: fields.DigestTable


@dataclass(frozen=True)
class Commit(Message):
    """S: the guest is D's from here on. S will not resume it unless D says that it never starts."""


@dataclass(frozen=True)
class Running(Message):
    """D: the guest has been let run, or left paused where it came paused. The last message."""

    status: fields.NameText


@dataclass(frozen=True)
class CommitFailed(Message):
    """D: it durably did not start the guest and never will. The last message."""

    message: fields.ProseText


@dataclass(frozen=True)
class Abort(Message):
    """Both: this migration ends here. D answers, and follows its own, with Aborted."""

    kind: fields.NameText
    message: fields.ProseText
    advice: fields.ProseText


@dataclass(frozen=True)
class Aborted(Message):
    """D: it durably will never start the guest. The last message."""


@dataclass(frozen=True)
class Ping(Message):
    """Both: say something. ``sequence`` rises with each one."""

    sequence: fields.Uint63


@dataclass(frozen=True)
class Pong(Message):
    """Both: the answer to the Ping of this sequence."""

    sequence: fields.Uint63


@dataclass(frozen=True)
class Query(Message):
    """S, first on a connection for recovery: what became of this migration?

    With ``guest``, the name on D of one that might be carried there: would it find room?
    """

    migration_id: fields.MigrationId
    guest: fields.ProseText = ""


@dataclass(frozen=True)
class QueryReply(Message):
    """D: the phase in its journal, see model/phase.py, or ``no-journal``.

    Where S asked about a guest: D's ``verdict`` on it (else empty), why in ``detail`` and what to
    do in ``advice``; and what D has free of memory, swap and tmpfs.
    """

    phase: fields.NameText
    detail: fields.ProseText
    verdict: fields.ProseText = ""
    advice: fields.ProseText = ""
    memory_bytes: fields.Uint63 = 0
    swap_bytes: fields.Uint63 = 0
    tmpfs_bytes: fields.Uint63 = 0


@dataclass(frozen=True)
class Attach(Message):
    """S, first on a data connection: it is this channel of this migration."""

    migration_id: fields.MigrationId
    token: fields.Token
    channel: fields.ChannelIndex

    def __repr__(self) -> str:
        return f"Attach(migration_id={self.migration_id!r}, channel={self.channel})"


@dataclass(frozen=True)
class Pages(Message):
    """S, data: the pages of these runs, in order, as payload. ``cold``: page them out again."""

    block: fields.BlockIndex
    round: fields.RoundNumber
    runs: fields.RunList
    cold: fields.Bool

    @property
    def payload_bytes(self) -> int:
        return sum(self.runs[1::2]) * PAGE_BYTES


@dataclass(frozen=True)
class Packed(Message):
    """S, data, from version 2 on: as Pages, with the payload packed by ``encoding``.

    The payload's ``length`` bytes unpack to exactly the pages of the runs, at most as many as Pages
    may carry.
    """

    block: fields.BlockIndex
    round: fields.RoundNumber
    runs: fields.RunList
    cold: fields.Bool
    encoding: fields.NameText
    length: fields.Uint32

    @property
    def payload_bytes(self) -> int:
        return self.length

    @property
    def unpacked_bytes(self) -> int:
        """Length of what the payload unpacks to."""
        return sum(self.runs[1::2]) * PAGE_BYTES


@dataclass(frozen=True)
class Zeros(Message):
    """S, data: the pages of these runs hold zeros."""

    block: fields.BlockIndex
    round: fields.RoundNumber
    runs: fields.RunList


@dataclass(frozen=True)
class Holes(Message):
    """S, data: the pages of these runs are not allocated on the source (any more)."""

    block: fields.BlockIndex
    round: fields.RoundNumber
    runs: fields.RunList


@dataclass(frozen=True)
class Barrier(Message):
    """S, data: the end of this round on this channel, after so many frames."""

    round: fields.RoundNumber
    frames: fields.Uint32
