"""Logging to the journal, by its native protocol, and to stderr."""

from __future__ import annotations

import logging
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from pageferry.logs import JournalHandler, log_context, priority_of


class Journal:
    """journald's side of its socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(os.fspath(path))
        self.socket.settimeout(10)

    def entry(self) -> dict[str, str]:
        data, fds, _flags, _address = socket.recv_fds(self.socket, 1 << 20, 1)
        if fds:
            assert not data
            with os.fdopen(fds[0], "rb") as file:
                file.seek(0)  # journald maps it
                data = file.read()
        return parse(data)


def parse(data: bytes) -> dict[str, str]:
    """As journald reads it."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if equals:
            data = rest
        else:
            (length,) = struct.unpack("<Q", rest[:8])
            value, data = rest[8 : 8 + length], rest[8 + length :]
            assert data[:1] == b"\n"
            data = data[1:]
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal")
    yield made
    made.socket.close()


@pytest.fixture
def logger(journal: Journal) -> Iterator[logging.Logger]:
    made = logging.getLogger("test.journal")
    handler = JournalHandler("pageferryd", journal.path)
    made.addHandler(handler)
    made.setLevel(logging.DEBUG)
    made.propagate = False
    yield made
    made.removeHandler(handler)
    handler.close()


def test_fields_name_the_migration_within_its_context_only(
    journal: Journal, logger: logging.Logger
) -> None:
    with log_context(migration_id="abcd1234", guest="web", role="source"):
        logger.warning("round %d", 3)
    logger.info("idle")
    entry = journal.entry()
    assert entry["MESSAGE"] == "round 3"
    assert entry["PRIORITY"] == "4"
    assert entry["SYSLOG_IDENTIFIER"] == "pageferryd"
    assert entry["LOGGER"] == "test.journal"
    assert entry["PAGEFERRY_MIGRATION_ID"] == "abcd1234"
    assert entry["PAGEFERRY_GUEST"] == "web"
    assert entry["PAGEFERRY_ROLE"] == "source"
    assert entry["CODE_FILE"].endswith("test_logs.py")
    assert entry["CODE_FUNC"] == "test_fields_name_the_migration_within_its_context_only"
    assert int(entry["CODE_LINE"]) > 0
    assert not [name for name in journal.entry() if name.startswith("PAGEFERRY_")]


async def test_context_reaches_tasks_and_threads_that_were_started_in_it(
    journal: Journal, logger: logging.Logger
) -> None:
    async def task() -> None:
        await trio.to_thread.run_sync(logger.info, "in a thread")

    async with trio.open_nursery() as nursery:
        with log_context(migration_id="abcd1234", guest="web", role="source"):
            nursery.start_soon(task)
    assert journal.entry()["PAGEFERRY_GUEST"] == "web"


def test_lines_and_tracebacks_stay_one_entry(journal: Journal, logger: logging.Logger) -> None:
    logger.info("one\ntwo = 2\n")
    assert journal.entry()["MESSAGE"] == "one\ntwo = 2\n"
    try:
        raise ZeroDivisionError("oops")
    except ZeroDivisionError:
        logger.exception("failed")
    message = journal.entry()["MESSAGE"]
    assert message.startswith("failed\nTraceback")
    assert message.endswith("oops")


def test_entry_longer_than_a_datagram_arrives_whole(
    journal: Journal, logger: logging.Logger
) -> None:
    text = "x" * (8 << 20)
    logger.info("%s", text)
    assert journal.entry()["MESSAGE"] == text


def test_priorities_are_those_of_syslog() -> None:
    levels = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
    assert [priority_of(level) for level in levels] == [2, 3, 4, 6, 7]


PROGRAM = """
import logging, os, sys
from pathlib import Path
from pageferry.logs import set_up_logging
if sys.argv[2] == "journal":
    status = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
set_up_logging("x", journal=Path(sys.argv[1]))
logging.getLogger("y").warning("hello")
"""


def test_journal_is_used_just_when_stderr_goes_there(journal: Journal) -> None:
    def stderr_of(how: str, path: Path) -> str:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, str(path), how],
            capture_output=True,
            text=True,
            check=True,
        ).stderr

    assert stderr_of("journal", journal.path) == ""
    assert journal.entry()["MESSAGE"] == "hello"
    assert "WARNING y: hello" in stderr_of("elsewhere", journal.path)
    # A journal that cannot be reached does not cost the line.
    assert "WARNING y: hello" in stderr_of("journal", journal.path.with_name("none"))
