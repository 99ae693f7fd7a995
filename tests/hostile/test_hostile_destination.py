"""What becomes of a source whose destination misbehaves: each test is named for the offence.

After each of them the guest runs on where it was, nothing of a migration is left in its QEMU, the
journal says that it is kept, and the daemon is well.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Iterator

import pytest

from pageferry.model.phase import SourcePhase
from pageferry.wire import messages as m
from pageferry.wire.frames import encode_head
from pageferry.wire.messages import encode
from tests.hostile.destinations import TOKEN, Destination, Host, host
from tests.hostile.peers import TIMEOUT_S
from tests.recovery.bench import phase_in, write_journal
from tests.support import need

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    need(shutil.which("qemu-system-x86_64") is not None, "needs qemu-system-x86_64")
    with host(tmp_path_factory.mktemp("hostile")) as made:
        yield made


@pytest.fixture
def destination(shared_host: Host) -> Iterator[Destination]:
    made = Destination(shared_host)
    try:
        yield made
    finally:
        made.close()
        shared_host.ended(made.migration_id)


def left(destination: Destination, reason: str, status: str = "failed") -> None:
    """The source has given up because of *reason*, and its guest is as it was."""
    info = destination.host.ended(destination.migration_id)
    assert info["status"] == status
    assert reason in info["error"]["message"], info["error"]
    destination.host.assert_untouched(destination.migration_id)


def test_a_version_that_was_not_offered(destination: Destination) -> None:
    destination.say(m.HelloReply(9, "hostile"))
    left(destination, "version 9 was not offered")


def test_more_channels_than_were_offered(destination: Destination) -> None:
    destination.agree()
    destination.say(m.Ready(TOKEN, 64))
    left(destination, "64 channels, 2 were offered")


@pytest.mark.parametrize("part", ["meta", "payload"])
def test_a_frame_of_4_gib(destination: Destination, part: str) -> None:
    destination.start()
    if part == "meta":
        destination.control.sendall(b"\x93\xce\xff\xff\xff\xff")
    else:
        destination.control.sendall(encode_head(m.DeviceEnd())[:-4] + b"\xff\xff\xff\xff")
    left(destination, "4294967295 bytes")


def test_noise_on_the_control_connection(destination: Destination) -> None:
    destination.start()
    destination.control.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    left(destination, "frame")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (m.Running("running"), "it needs commit first"),
        (m.CommitFailed("no"), "it needs commit first"),
        (m.Aborted(), "it needs abort first"),
        (m.DeviceLoaded(), "it needs device-ready first"),
        (m.DeviceReady(), "it needs prepare-device first"),
        (m.RoundAck(7, 0, 0, 0, 0), "it needs round-end first"),
        (m.Digest({"ram0": "00" * 32}), "it needs verify first"),
        (m.Commit(), "it is not for the destination"),
        (m.QueryReply("aborted", ""), "it needs query first"),
    ],
    ids=lambda value: value.name if isinstance(value, m.Message) else "",
)
def test_what_was_not_asked_for(destination: Destination, message: m.Message, reason: str) -> None:
    destination.start()
    destination.say(message)
    left(destination, reason)


def test_an_acknowledgement_of_another_round(destination: Destination) -> None:
    destination.first_round()
    destination.say(m.RoundAck(2, 0, 0, 0, 0))
    left(destination, "round 2 is not waiting for it")


def test_an_end_without_a_word(destination: Destination) -> None:
    destination.first_round()
    destination.close()
    left(destination, "the connection to the other agent is gone")


def test_pages_that_are_never_read_nor_acknowledged(destination: Destination) -> None:
    """It lives, and answers pings: the migration waits, and can be cancelled all the same."""
    until_s = time.monotonic() + 2
    destination.start(drained=False)
    destination.control.settimeout(0.2)
    while time.monotonic() < until_s:
        with contextlib.suppress(TimeoutError):
            destination.hear()
    destination.host.control("migrate-cancel", **{"migration-id": destination.migration_id})
    destination.control.settimeout(TIMEOUT_S)
    destination.expect(m.Abort)
    destination.close()
    left(destination, "was cancelled", status="cancelled")


@pytest.mark.parametrize(
    "answer",
    [
        b"\x93\xce\xff\xff\xff\xff",
        encode(m.QueryReply("aborted" * 30, "")),
        encode(m.QueryReply("loaded", "")) + encode(m.Running("running")),
        encode(m.QueryReply("loaded", "")) + encode(m.QueryReply("aborted", "")),
        encode(m.Refuse("aborted", "")),
    ],
    ids=["frame-of-4-gib", "unknown-phase", "running-uncalled-for", "two-answers", "refusal"],
)
def test_an_answer_that_is_none_settles_nothing(shared_host: Host, answer: bytes) -> None:
    """The source has said Commit, and asks: its guest stays paused."""
    migration_id = f"{zlib.crc32(answer):032x}"
    with answering(answer) as port:
        path = write_journal(
            shared_host.daemon.state_dir,
            "source",
            SourcePhase.COMMIT,
            None,
            migration_id,
            host="127.0.0.1",
            port=port,
        )
        (told,) = shared_host.daemon.recovered(migration_id)
    assert not told["settled"], told
    assert phase_in(path) == "commit"


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Something that says *answer* to whoever connects, at the port that is given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _peer = listener.accept()
                    with sock:
                        sock.recv(1 << 16)
                        sock.sendall(answer)
                        sock.shutdown(socket.SHUT_WR)
                        while sock.recv(1 << 16):
                            continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
