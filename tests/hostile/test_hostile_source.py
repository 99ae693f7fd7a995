"""What becomes of a destination whose source misbehaves: each test is named for the offence.

After each of them the guest never runs here, the journal says so, the daemon is well, and a QEMU
into which nothing was loaded waits for the next guest.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from pageferry.model.blocks import PAGE_BYTES
from pageferry.wire import messages as m
from pageferry.wire.frames import encode_head
from tests.hostile.peers import PAGES, RAM_BYTES, Source, Victim, is_closed, victim
from tests.recovery.bench import eventually
from tests.support import need

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shared_victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    need(shutil.which("qemu-system-x86_64") is not None, "needs qemu-system-x86_64")
    with victim(tmp_path_factory.mktemp("hostile")) as made:
        yield made


@pytest.fixture
def source(shared_victim: Victim) -> Iterator[Source]:
    shared_victim.start_qemu()
    made = Source(shared_victim)
    try:
        yield made
    finally:
        made.close()
        # The guest is free again, for the next offender.
        eventually(shared_victim.is_idle, "the migration is over")


def thrown_out(source: Source, reason: str, *, qemu_waits: bool = True) -> None:
    """The destination has given up because of *reason*, and is as it should be then."""
    words = source.last_words()
    told = [word for word in words if isinstance(word, m.Abort)]
    if told:
        assert reason in told[0].message, told[0].message
    assert not any(isinstance(word, m.Running | m.DeviceLoaded) for word in words), words
    victim = source.victim
    eventually(lambda: victim.has_given_up(source.migration_id), "its journal says aborted")
    eventually(lambda: reason in victim.daemon.log(), f"the log says {reason!r}")
    assert victim.daemon.process is not None
    assert victim.daemon.process.poll() is None
    if qemu_waits:
        eventually(victim.is_idle, "the migration is over")
        assert victim.status() == "inmigrate"
        assert victim.ram.stat().st_blocks == 0, "its memory was given back"
    else:
        eventually(victim.is_gone, "QEMU, which had begun to load, was ended")


def test_pages_past_the_end_of_a_block(source: Source) -> None:
    source.start()
    source.send(0, m.Pages(0, 1, [PAGES - 1, 2], False), bytes(2 * PAGE_BYTES))
    thrown_out(source, "do not lie within RAM block ram0")


@pytest.mark.parametrize("kind", [m.Zeros, m.Holes])
def test_runs_without_payload_past_the_end_of_a_block(
    source: Source, kind: type[m.Zeros | m.Holes]
) -> None:
    source.start()
    source.send(1, kind(0, 1, [1 << 40, 1]))
    thrown_out(source, "do not lie within RAM block ram0")


def test_an_unknown_block(source: Source) -> None:
    source.start()
    source.send(0, m.Pages(1, 1, [0, 1], False), bytes(PAGE_BYTES))
    thrown_out(source, "names RAM block 1 of 1")


def test_wrong_count_at_the_barrier(source: Source) -> None:
    source.start()
    source.send(0, m.Pages(0, 1, [0, 1], False), b"x" * PAGE_BYTES)
    source.send(0, m.Barrier(1, 2))
    thrown_out(source, "frames")


def test_wrong_count_on_the_control_connection(source: Source) -> None:
    source.start()
    source.send(0, m.Barrier(1, 0))
    source.send(1, m.Barrier(1, 0))
    source.say(m.RoundEnd(1, [0, 7], False))
    thrown_out(source, "frames")


def test_counts_of_other_channels_than_there_are(source: Source) -> None:
    source.start()
    source.say(m.RoundEnd(1, [0, 0, 0], False))
    thrown_out(source, "3 channels of 2")


@pytest.mark.parametrize("where", ["control", "data"])
@pytest.mark.parametrize("part", ["meta", "payload"])
def test_a_frame_of_4_gib(source: Source, where: str, part: str) -> None:
    source.start()
    sock = source.control if where == "control" else source.channels[0]
    if part == "meta":
        sock.sendall(b"\x93\xce\xff\xff\xff\xff")
    else:
        message = m.DeviceEnd() if where == "control" else m.Zeros(0, 1, [0, 1])
        sock.sendall(encode_head(message)[:-4] + b"\xff\xff\xff\xff")
    thrown_out(source, "4294967295 bytes")


def test_a_payload_that_is_not_that_of_its_runs(source: Source) -> None:
    source.start()
    head = bytearray(encode_head(m.Pages(0, 1, [0, 1], False), PAGE_BYTES))
    head[-4:] = (2 * PAGE_BYTES).to_bytes(4, "big")
    source.channels[0].sendall(bytes(head) + bytes(2 * PAGE_BYTES))
    thrown_out(source, "payload")


def test_a_frame_of_another_round(source: Source) -> None:
    source.start()
    source.send(0, m.Pages(0, 2, [0, 1], False), b"x" * PAGE_BYTES)
    thrown_out(source, "a frame of round 2 came in round 1")


def test_a_frame_of_a_round_that_is_over(source: Source) -> None:
    source.start()
    source.round(1)
    source.send(0, m.Pages(0, 1, [0, 1], False), b"x" * PAGE_BYTES)
    thrown_out(source, "a frame of round 1 came in round 2")


def test_data_after_the_barrier(source: Source) -> None:
    source.start()
    source.send(0, m.Barrier(1, 0))
    source.send(0, m.Zeros(0, 1, [0, 1]))
    thrown_out(source, "barrier")


def test_a_round_before_the_one_before_is_acknowledged(source: Source) -> None:
    source.start()
    source.say(m.RoundEnd(1, [0, 0], False), m.RoundEnd(2, [0, 0], False))
    thrown_out(source, "not acknowledged")


def test_a_control_message_on_a_data_connection(source: Source) -> None:
    source.start()
    source.channels[0].sendall(encode_head(m.Commit()))
    thrown_out(source, "on a data connection")


def test_pages_on_the_control_connection(source: Source) -> None:
    source.start()
    frame = encode_head(m.Pages(0, 1, [0, 1], False), PAGE_BYTES) + bytes(PAGE_BYTES)
    source.control.sendall(frame)
    thrown_out(source, "not for it")


def test_noise_on_the_control_connection(source: Source) -> None:
    source.start()
    source.control.sendall(b"\x00" * 4096)
    thrown_out(source, "where a frame begins")


def test_device_data_before_device_ready(source: Source) -> None:
    source.start()
    source.say(m.DeviceData(b"QEVM"))
    thrown_out(source, "device-data")


def test_a_final_round_before_device_ready(source: Source) -> None:
    source.start()
    source.say(m.RoundEnd(1, [0, 0], True))
    thrown_out(source, "device-ready")


def test_commit_before_anything(source: Source) -> None:
    source.start()
    source.say(m.Commit())
    thrown_out(source, "commit")


def test_commit_before_the_final_round(source: Source) -> None:
    source.start()
    source.round(1)
    source.say(m.PrepareDevice())
    source.expect(m.DeviceReady)
    source.say(m.Commit())
    thrown_out(source, "commit", qemu_waits=False)


def test_commit_before_the_devices_are_loaded(source: Source) -> None:
    source.start()
    source.round(1)
    source.say(m.PrepareDevice())
    source.expect(m.DeviceReady)
    source.round(2, final=True)
    source.say(m.Commit())
    thrown_out(source, "commit", qemu_waits=False)


def test_device_state_that_is_none(source: Source) -> None:
    source.start()
    source.say(m.PrepareDevice())
    source.expect(m.DeviceReady)
    source.say(m.DeviceData(b"this is no QEMU" * 1000), m.DeviceEnd())
    thrown_out(source, "QEMU", qemu_waits=False)


def test_hello_twice(source: Source) -> None:
    source.introduce()
    source.say(source.hello())
    thrown_out(source, "hello")


def test_a_digest_that_nobody_knows(source: Source) -> None:
    source.start()
    source.say(m.PrepareDevice())
    source.expect(m.DeviceReady)
    source.round(1, final=True)
    source.say(m.Verify("crc8"))
    thrown_out(source, "crc8", qemu_waits=False)


@pytest.mark.parametrize("versions", [(3, 4), (60000, 65535)])
def test_only_versions_that_are_not_spoken_here(source: Source, versions: tuple[int, int]) -> None:
    source.say(source.hello(*versions))
    refuse = source.expect(m.Refuse)
    assert isinstance(refuse, m.Refuse)
    assert f"versions {versions[0]} to {versions[1]}" in refuse.message
    assert "same version" in refuse.advice
    source.control.close()
    assert source.victim.status() == "inmigrate"


@pytest.mark.parametrize(
    "blocks",
    [
        (("ram0", RAM_BYTES * 2),),
        (("ram1", RAM_BYTES),),
        (("ram0", RAM_BYTES), ("more", RAM_BYTES)),
    ],
)
def test_other_blocks_than_there_are(source: Source, blocks: tuple[tuple[str, int], ...]) -> None:
    source.say(source.hello())
    source.expect(m.HelloReply)
    source.say(source.describe(blocks=blocks))
    refuse = source.expect(m.Refuse)
    assert isinstance(refuse, m.Refuse)
    assert "RAM block" in refuse.message
    assert source.victim.status() == "inmigrate"


def test_a_replayed_token(source: Source) -> None:
    """A channel is attached once; the migration goes on without the second one."""
    source.start()
    again = source.attach(0)
    assert is_closed(again)
    again.close()
    source.round(1)
    token = source.ready.token if source.ready else b""
    source.close()
    eventually(lambda: source.victim.has_given_up(source.migration_id), "the end")
    eventually(source.victim.is_idle, "the migration is over")
    late = source.attach(0, token)
    assert is_closed(late)
    late.close()


@pytest.mark.parametrize("channel", [0, 2, 63])
def test_a_wrong_token_or_channel(source: Source, channel: int) -> None:
    source.introduce()
    wrong = source.attach(channel, bytes(32))
    assert is_closed(wrong)
    wrong.close()
    if channel > 1:
        beyond = source.attach(channel)
        assert is_closed(beyond)
        beyond.close()
    source.channels = [source.attach(index) for index in range(2)]
    source.expect(m.Started)
    source.round(1)


def test_the_same_migration_again(source: Source) -> None:
    source.start()
    other = Source(source.victim)
    other.migration_id = source.migration_id
    other.say(other.hello())
    refuse = other.expect(m.Refuse)
    assert isinstance(refuse, m.Refuse)
    assert "before" in refuse.message
    other.close()
    source.round(1)


def test_silence(source: Source) -> None:
    source.start()
    began_s = time.monotonic()
    source.control.settimeout(30)
    while source.control.recv(1 << 16):  # reads, and says nothing, to no ping
        continue
    assert 8 < time.monotonic() - began_s < 25
    eventually(lambda: source.victim.has_given_up(source.migration_id), "its journal says aborted")
    eventually(lambda: "has said nothing for" in source.victim.daemon.log(), "the log says why")


def test_a_source_that_vanishes(source: Source) -> None:
    source.start()
    source.send(0, m.Pages(0, 1, [0, 1], False), b"x" * PAGE_BYTES)
    source.close()
    victim = source.victim
    eventually(lambda: victim.has_given_up(source.migration_id), "its journal says aborted")
    eventually(victim.is_idle, "the migration is over")
    assert victim.status() == "inmigrate"
    assert victim.ram.stat().st_blocks == 0
