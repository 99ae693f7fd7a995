"""docs/five-minutes.md, *On one host*: its commands are run as they stand there, on real QEMUs."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pageferry.testing.lab.hosts import scratch_folder
from pageferry.testing.lab.patience import patient
from tests.docs.pages import ROOT, read_page
from tests.support import need

PAGE = ROOT / "docs" / "five-minutes.md"

FOLDER, RAM = "/tmp/pageferry-try", "/dev/shm/pageferry-try-"

BLOCK_TIMEOUT_S = patient(60.0)


class Reader:
    """Somebody who follows the page: types a block, reads what it prints, and types the next.

    Only folder, RAM files and ports are others than on the page, so that two may do it at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ram = f"/dev/shm/pageferry-lab-{secrets.token_hex(4)}-"
        self._ports = [_free_port(), _free_port()]

    def blocks(self) -> list[str]:
        """The commands of the part about one host."""
        text = PAGE.read_text()
        first = text[: text.index("\n## On one host")].count("\n") + 1
        last = text[: text.index("\n## Between two hosts")].count("\n") + 1
        page = read_page(PAGE)
        found = [b.text for b in page.blocks if b.language == "sh" and first < b.line < last]
        return [self._here(text) for text in found]

    def _here(self, text: str) -> str:
        text = text.replace(FOLDER, str(self.folder)).replace(RAM, self.ram)
        for written, free in zip((49400, 49401), self._ports, strict=True):
            text = text.replace(f"127.0.0.1:{written}", f"127.0.0.1:{free}")
        return text

    def type_in(self, block: str) -> str:
        """Run one block; what it printed. Fails when one of its commands does."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}",
        }
        environment.pop("PAGEFERRY_SOCKET", None)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BLOCK_TIMEOUT_S,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}\n{self._logs()}"
        return done.stdout

    def wait(self, until: Callable[[], bool], what: str) -> None:
        """People take a moment between two blocks."""
        deadline = time.monotonic() + BLOCK_TIMEOUT_S
        while not until():
            assert time.monotonic() < deadline, f"{what}\n{self._logs()}"
            time.sleep(0.05)

    def listens(self, name: str) -> bool:
        """Whether somebody listens on this socket of the folder."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.folder / name)) == 0

    def serial(self, name: str) -> list[str]:
        """The lines that the guest has written on one side."""
        path = self.folder / f"{name}.serial"
        return path.read_text(errors="replace").splitlines() if path.exists() else []

    def pids(self) -> list[int]:
        """What the page has started and not ended."""
        return [int(path.read_text()) for path in self.folder.glob("*.pid") if path.stat().st_size]

    def clear_away(self) -> None:
        """What a failure has left."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for side in "ab":
            Path(f"{self.ram}{side}").unlink(missing_ok=True)

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.folder.glob("*.log"))


@pytest.fixture
def reader() -> Iterator[Reader]:
    with scratch_folder() as folder:
        found = Reader(folder / "try")
        try:
            yield found
        finally:
            found.clear_away()


@pytest.mark.root
@pytest.mark.qemu
def test_commands_of_the_page_lead_to_a_migration(reader: Reader) -> None:
    need(shutil.which("qemu-system-x86_64") is not None, "needs qemu-system-x86_64")
    blocks = iter(reader.blocks())

    def follow_until(command: str) -> str:
        for block in blocks:
            printed = reader.type_in(block)
            if command in block:
                return printed
        raise AssertionError(f"the page has no block with {command!r} where it was awaited")

    follow_until("pageferryd --config")
    reader.wait(lambda: reader.listens("a.sock") and reader.listens("b.sock"), "no daemons")
    reader.wait(lambda: any(line.startswith("READY") for line in reader.serial("a")), "no guest")

    told = follow_until("pageferry doctor")
    assert "128.0 MiB" in told
    assert "can be carried, as a source" in told
    assert "downtime to expect" in told

    last = json.loads(follow_until("pageferry migrate").splitlines()[-1])
    assert (last["event"], last["status"], last["exit-status"]) == ("finished", "completed", 0)
    assert last["info"]["verified"] is True

    told = follow_until("pageferry history")
    assert "completed" in told
    assert any(line.startswith("S ") for line in reader.serial("b"))

    pids = reader.pids()
    assert len(pids) == 4
    follow_until("rm -rf")
    assert list(blocks) == []
    assert not reader.folder.exists()
    reader.wait(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), "not ended")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
