"""`pageferry migrate` on a real terminal, and as JSON lines, while a real guest is carried."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import time

import pytest

from pageferry.testing.lab.carrying import GUEST_NAME
from tests.migration.conftest import assert_verified
from tests.migration.pairs import Pair

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu]

TIMEOUT_S = 60.0

ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(command: list[str]) -> tuple[int, str]:
    """Exit status and what a terminal of 120 columns was sent, without the escape sequences."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True
    )
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                piece = b""
                with contextlib.suppress(OSError):  # EIO: the other end was closed
                    piece = os.read(ours, 65536)
                if not piece:
                    break
                shown += piece
        return process.wait(timeout=10), ESCAPES.sub(b"", shown).decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_progress_is_shown_live(swapped_pair: Pair) -> None:
    # A small window makes the cold pass long enough to be seen.
    command = swapped_pair.here.cli(
        "migrate", GUEST_NAME, swapped_pair.there.address, "--window", "262144"
    )
    status, shown = on_a_terminal(command)
    assert status == 0, shown
    assert "cold" in shown
    assert "MiB" in shown
    assert "completed" in shown
    assert "downtime" in shown.lower()
    # Redrawn in place: the same line comes more than once.
    assert shown.count("cold") > 1
    assert_verified(swapped_pair.guest)


def test_json_lines_never_run_backwards(swapped_pair: Pair) -> None:
    result = swapped_pair.migrate("--window", "262144")
    assert result.status == 0, result.reason
    assert result.lines[0]["event"] == "started"
    assert result.lines[-1]["event"] == "finished"
    infos = [line["info"] for line in result.lines if line["event"] == "status"]
    sent = [info["ram"]["transferred"] for info in infos if "ram" in info]
    assert sent == sorted(sent)
    assert len(set(sent)) > 1
    done: dict[str, int] = {}
    for info in infos:
        if "progress" in info:
            key = f"{info['phase']} {info['ram']['dirty-sync-count']}"
            now = info["progress"]["phase-done-bytes"]
            assert now >= done.get(key, 0)
            done[key] = now
    assert json.dumps(result.lines[-1]["info"]["residency"])
    assert_verified(swapped_pair.guest)
