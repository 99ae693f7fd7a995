"""Makes the seeds in tests/fuzz/corpus, which are checked in: ``python -m tests.fuzz.seeds``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pageferry.migration.journal import _sealed
from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.wire import messages as m
from pageferry.wire.frames import PAYLOAD_HEAD_BYTES, PREAMBLE_BYTES, encode_head
from pageferry.wire.messages import encode
from tests.wire.pair import DESCRIBE, HELLO, WHOLE, D, S

CORPUS: Final = Path(__file__).with_name("corpus")

CONFIG: Final = b"""[daemon]
control-socket = "/run/pageferry/control.sock"
control-socket-mode = "0600"
listen = "127.0.0.1:49400"
state-directory = "/var/lib/pageferry"
plaintext = true

[defaults]
downtime-limit = 300
page-in-window = "8MiB"
channels = 2
max-rounds = 30
verify = false
timeout = 9.5

[guests.web1]
qmp = "/run/qemu/web1.qmp"
"""


def control() -> Iterator[bytes]:
    """What a source says, whole and in parts."""
    said = [encode(message) for speaker, message in WHOLE if speaker is S]
    yield b"\xff" + b"".join(said)
    for count in range(1, len(said)):
        yield b"\x07" + b"".join(said[:count])
    yield b"\xff" + encode(m.Query("ab" * 8)) + encode(m.Abort("cancelled", "x", "y"))
    yield b"\xff" + encode(HELLO) + encode(DESCRIBE) + encode(m.Ping(1))
    yield b"\xff\x93\xce\xff\xff\xff\xff"


def answers() -> Iterator[bytes]:
    """What a destination says, whole and in parts, and to a source that asks."""
    said = [encode(message) for speaker, message in WHOLE if speaker is D]
    for count in range(1, len(said) + 1):
        yield b"\xffh" + b"".join(said[:count])
    asked = encode(m.QueryReply("loaded", ""))
    yield b"\x07?" + asked + encode(m.Aborted())
    yield b"\xff?" + asked + encode(m.Running("running"))
    yield b"\xffh" + encode(m.Refuse("no", "x"))


def data() -> Iterator[bytes]:
    """Heads of every frame of a data connection."""
    yield encode_head(m.Pages(0, 1, [0, 1, 5, 2], True), 3 * 4096)
    yield encode_head(m.Pages(0, 1, [999, 2], False), 2 * 4096)
    yield encode_head(m.Zeros(0, 2, [1, 1]))
    yield encode_head(m.Holes(3, 2, [2**47, 1]))
    yield encode_head(m.Barrier(1, 7))


def first() -> Iterator[bytes]:
    """The metas of first messages."""
    for message in (HELLO, m.Query("ab" * 8), m.Attach("ab" * 8, bytes(32), 0)):
        yield encode_head(message)[PREAMBLE_BYTES:-PAYLOAD_HEAD_BYTES]


def jsonstream() -> Iterator[bytes]:
    """Commands, with and without newlines, and broken ones."""
    yield b"\x03" + b'{"execute": "qmp_capabilities"}{"execute":"migrate","arguments":{"uri":"a"}}'
    yield b"\xff" + b'{"execute": "query-migrate", "id": [1, {"a": "\\\\\\""}]}\r\n{"x": 1]\n'
    yield b"\x00" + b'{"a": "forgotten\n{}\xff{"b": 1e999}[[[[]]]]hello\n'


def journal() -> Iterator[bytes]:
    """Whole journals of both sides, and one line after the other without checksums."""
    notes = {
        "guest": "web",
        "qmp": "/run/q",
        "host": "h",
        "port": 49400,
        "was-running": True,
        "guest-running": True,
        "qemu": {"pid": 1, "start-ticks": 2, "boot-id": "x"},
    }
    for role, phases, mark in (
        ("source", list(SourcePhase)[:9], 3),
        ("destination", list(DestinationPhase)[:5], 1),
    ):
        records = [
            {
                "migration-id": "0123456789abcdef",
                "role": role,
                "phase": phase.value,
                "time-ns": 1,
                "notes": notes if number == 0 else {},
            }
            for number, phase in enumerate(phases)
        ]
        for count in (1, len(records)):
            yield bytes([mark]) + b"".join(_sealed(record) for record in records[:count])
            plain = b"\n".join(
                json.dumps(record, separators=(",", ":")).encode() for record in records[:count]
            )
            yield bytes([mark - 1]) + plain


def config() -> Iterator[bytes]:
    """One with everything, and its parts."""
    yield CONFIG
    yield from CONFIG.split(b"\n\n")


def main() -> None:
    """Write them."""
    for make in (control, answers, data, first, jsonstream, journal, config):
        folder = CORPUS / make.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for seed in make():
            (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


if __name__ == "__main__":
    main()
