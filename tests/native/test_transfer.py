"""Zero detection against Python's, and payload over real sockets."""

from __future__ import annotations

import importlib
import os
import random
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import Runs
from pageferry.kernel.placing import Placer, placer_for
from pageferry.kernel.transfer import (
    Scratch,
    receive_exact,
    receive_payload,
    send_payload,
    split_zero,
)
from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.pages import runs_of

lib: Any = importlib.import_module("pageferry.kernel._native").lib

PAGES = 3000
FIRST_PAGE = 5  # of the block within its file


@pytest.fixture
def ram_fd() -> Iterator[int]:
    fd = os.memfd_create("pageferry-test", os.MFD_CLOEXEC)
    os.ftruncate(fd, (FIRST_PAGE + PAGES) * PAGE_BYTES)
    yield fd
    os.close(fd)


def fill(fd: int, pages: set[int], seed: int = 1) -> dict[int, bytes]:
    stream = random.Random(seed)
    contents = {page: stream.randbytes(PAGE_BYTES) for page in pages}
    for page, content in contents.items():
        os.pwrite(fd, content, (FIRST_PAGE + page) * PAGE_BYTES)
    return contents


@pytest.mark.parametrize("level", [0, 1, 2])
def test_split_zero_agrees_with_a_slow_look(
    ram_fd: int, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if level > lib.pf_zero_best_level():
        pytest.skip("this processor has no AVX2")
    monkeypatch.setattr("pageferry.kernel.transfer.ZERO_LEVEL", level)
    stream = random.Random(level)
    data = {page for page in range(300) if stream.random() < 0.8}
    for page in data:
        content = bytearray(PAGE_BYTES)
        if stream.random() < 0.5:
            content[stream.randrange(PAGE_BYTES)] = stream.randrange(1, 256)
        os.pwrite(ram_fd, content, (FIRST_PAGE + page) * PAGE_BYTES)
    with RamMapping(ram_fd, FIRST_PAGE * PAGE_BYTES, PAGES * PAGE_BYTES) as mapping:
        nonzero, zero = split_zero(mapping, Runs.from_pages(data))
        expected = {page for page in data if any(mapping.view(page, 1))}
    assert list(nonzero) == runs_of(expected)
    assert list(zero) == runs_of(data - expected)


def exchange(source: RamMapping, target_fd: int, runs: Runs, head: bytes) -> bytes:
    """Send head and pages over TCP and receive them; returns the head as it came."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        sender = threading.Thread(
            target=send_payload, args=(ours.fileno(), head, source, runs), daemon=True
        )
        sender.start()
        got = bytearray(len(head))
        receive_exact(theirs.fileno(), len(head), got)
        offset = FIRST_PAGE * PAGE_BYTES
        receive_payload(theirs.fileno(), target_fd, offset, runs, Scratch(16 * PAGE_BYTES))
        sender.join()
        return bytes(got)


def test_payload_arrives_and_touches_nothing_else(ram_fd: int) -> None:
    stream = random.Random(3)
    sent = {page for page in range(PAGES) if stream.random() < 0.7}  # more runs than IOV_MAX / 2
    contents = fill(ram_fd, set(range(PAGES)))
    target = os.memfd_create("pageferry-test", os.MFD_CLOEXEC)
    os.ftruncate(target, (FIRST_PAGE + PAGES) * PAGE_BYTES)
    with RamMapping(ram_fd, FIRST_PAGE * PAGE_BYTES, PAGES * PAGE_BYTES) as mapping:
        runs = Runs.from_pages(sent)
        assert exchange(mapping, target, runs, b"a head of some bytes") == b"a head of some bytes"
    for page in range(PAGES):
        got = os.pread(target, PAGE_BYTES, (FIRST_PAGE + page) * PAGE_BYTES)
        assert got == (contents[page] if page in sent else bytes(PAGE_BYTES))
    assert os.fstat(target).st_blocks * 512 == len(sent) * PAGE_BYTES
    os.close(target)


def test_new_pages_are_placed_beside_those_that_are_there(ram_fd: int) -> None:
    stream = random.Random(4)
    sent = {page for page in range(PAGES) if stream.random() < 0.7}
    contents = fill(ram_fd, set(range(PAGES)))
    target = os.memfd_create("pageferry-test", os.MFD_CLOEXEC)
    os.ftruncate(target, (FIRST_PAGE + PAGES) * PAGE_BYTES)
    there = {page for page in range(PAGES) if stream.random() < 0.1}
    before = fill(target, there, seed=2)
    runs = Runs.from_pages(sent)
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        RamMapping(ram_fd, FIRST_PAGE * PAGE_BYTES, PAGES * PAGE_BYTES) as mapping,
        RamMapping(target, FIRST_PAGE * PAGE_BYTES, PAGES * PAGE_BYTES) as into,
    ):
        placer = Placer(into)
        sender = threading.Thread(target=send_payload, args=(ours.fileno(), b"", mapping, runs))
        sender.start()
        receive_payload(
            theirs.fileno(),
            into.fd,
            into.file_offset_bytes,
            runs,
            Scratch(),
            placer=placer,
        )
        sender.join()
    for page in range(PAGES):
        got = os.pread(target, PAGE_BYTES, (FIRST_PAGE + page) * PAGE_BYTES)
        assert got == (contents[page] if page in sent else before.get(page, bytes(PAGE_BYTES)))
    assert os.fstat(target).st_blocks * 512 == len(sent | there) * PAGE_BYTES
    os.close(target)


def test_a_placer_needs_a_file_that_may_be_written(ram_fd: int) -> None:
    read_only = os.open(f"/proc/self/fd/{ram_fd}", os.O_RDONLY | os.O_CLOEXEC)
    with RamMapping(read_only, FIRST_PAGE * PAGE_BYTES, PAGES * PAGE_BYTES) as mapping:
        with pytest.raises(OSError, match="register guest RAM"):
            Placer(mapping)
        assert placer_for(mapping) is None
    os.close(read_only)


@pytest.mark.root
def test_where_huge_pages_are_allowed_pwrite_allocates_them(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "huge=always", "pageferry-test", str(tmp_path)]
    subprocess.run(mount, check=True)
    try:
        with (tmp_path / "ram").open("w+b") as file:
            file.truncate(PAGES * PAGE_BYTES)
            with RamMapping(file.fileno(), 0, PAGES * PAGE_BYTES) as mapping:
                assert placer_for(mapping) is None
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_peer_closes_within_a_payload(ram_fd: int) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(bytes(PAGE_BYTES + 1))
        ours.close()
        with pytest.raises(ConnectionError):
            receive_payload(theirs.fileno(), ram_fd, 0, Runs.from_pairs([(0, 2)]), Scratch())


def test_sending_to_a_closed_peer_raises_and_sends_no_signal(ram_fd: int) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with (
        ours,
        RamMapping(ram_fd, 0, PAGES * PAGE_BYTES) as mapping,
        pytest.raises(BrokenPipeError),
    ):
        send_payload(ours.fileno(), b"head", mapping, Runs.from_pairs([(0, 2)]))


def test_runs_beyond_the_mapping_are_refused_before_anything_is_sent(ram_fd: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, RamMapping(ram_fd, 0, 4 * PAGE_BYTES) as mapping:
        with pytest.raises(ValueError, match="beyond"):
            send_payload(ours.fileno(), b"head", mapping, Runs.from_pairs([(3, 2)]))
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def test_disk_full_names_the_action() -> None:
    ours, theirs = socket.socketpair()
    read_only = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
    with ours, theirs:
        ours.sendall(bytes(PAGE_BYTES))
        with pytest.raises(OSError, match="No space left on device: receive guest pages"):
            receive_payload(theirs.fileno(), read_only, 0, Runs.from_pairs([(0, 1)]), Scratch())
    os.close(read_only)


def test_exact_receive_refuses_a_buffer_too_small() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        receive_exact(0, 5, bytearray(4))


def test_close_waits_for_a_call_that_uses_the_mapping(ram_fd: int) -> None:
    ours, theirs = socket.socketpair()
    fill(ram_fd, set(range(PAGES)))
    mapping = RamMapping(ram_fd, 0, PAGES * PAGE_BYTES)
    runs = Runs.from_pairs([(0, PAGES)])
    # More than a socket's buffer: the sender blocks inside C until somebody reads.
    sender = threading.Thread(target=send_payload, args=(ours.fileno(), b"h", mapping, runs))
    sender.start()
    receive_exact(theirs.fileno(), 1, bytearray(1))
    closer = threading.Thread(target=mapping.close)
    closer.start()
    while not mapping._closed:
        pass
    assert closer.is_alive()
    with pytest.raises(ValueError, match="closed"):
        split_zero(mapping, runs)
    receive_exact(theirs.fileno(), PAGES * PAGE_BYTES, bytearray(PAGES * PAGE_BYTES))
    sender.join()
    closer.join()
    ours.close()
    theirs.close()


def test_mapping_refuses_a_file_that_is_too_short(ram_fd: int) -> None:
    with pytest.raises(ValueError, match="ends before"):
        RamMapping(ram_fd, FIRST_PAGE * PAGE_BYTES, (PAGES + 1) * PAGE_BYTES)
    with pytest.raises(ValueError, match="whole pages"):
        RamMapping(ram_fd, 100, PAGE_BYTES)


def test_view_is_read_only_and_bounded(ram_fd: int) -> None:
    contents = fill(ram_fd, {7})
    with RamMapping(ram_fd, FIRST_PAGE * PAGE_BYTES, PAGES * PAGE_BYTES) as mapping:
        view = mapping.view(7, 1)
        assert view.readonly
        assert view == contents[7]
        with pytest.raises(ValueError, match="pages"):
            mapping.view(PAGES, 1)
