"""Memory cgroups of this host: where a process is charged, and that RAM received there is too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry.kernel.cgroup import memory_cgroup_of
from pageferry.testing.lab.cgroups import LabCgroup, memory_cgroup
from pageferry.testing.lab.cleanup import LabError
from tests.support import need

pytestmark = pytest.mark.root

LIMIT_BYTES = 64 << 20
RECEIVED_BYTES = 16 << 20

# Waits to be moved, then receives 16 MiB into the file and waits to be ended.
RECEIVE = r"""
import os, socket, sys, threading
from pageferry.kernel.pageset import Runs
from pageferry.kernel.transfer import Scratch, receive_payload
input()
ours, theirs = socket.socketpair()
pages = int(sys.argv[2]) // 4096
sender = threading.Thread(target=ours.sendall, args=(b"x" * (pages * 4096),))
sender.start()
fd = os.open(sys.argv[1], os.O_RDWR)
receive_payload(theirs.fileno(), fd, 0, Runs.from_pairs([(0, pages)]), Scratch())
sender.join()
print("received", flush=True)
input()
"""


@pytest.fixture
def group(root: None) -> Iterator[LabCgroup]:
    try:
        context = memory_cgroup("kernel-test", LIMIT_BYTES)
        made = context.__enter__()
    except LabError as error:
        need(False, str(error))
        raise
    yield made
    context.__exit__(None, None, None)


def test_received_pages_are_charged_to_the_cgroup_that_was_joined(
    group: LabCgroup, ram_fd: int, ram_path: Path
) -> None:
    os.ftruncate(ram_fd, RECEIVED_BYTES)
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as qemu,
        subprocess.Popen(
            [sys.executable, "-c", RECEIVE, str(ram_path), str(RECEIVED_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as worker,
    ):
        group.join(qemu.pid)
        found = memory_cgroup_of(qemu.pid)
        assert (found.version, found.path) == (group.version, group.path)
        assert found.limit_bytes() == LIMIT_BYTES
        before = found.usage_bytes()
        found.join(worker.pid)
        assert worker.pid in group.pids()
        assert worker.stdin is not None
        assert worker.stdout is not None
        print("go", file=worker.stdin, flush=True)
        assert worker.stdout.readline() == "received\n"
        charged = found.usage_bytes() - before
        headroom = found.headroom_bytes()
        assert RECEIVED_BYTES <= charged < RECEIVED_BYTES + (16 << 20)
        assert headroom is not None
        assert headroom <= LIMIT_BYTES - RECEIVED_BYTES
        assert found.stat()["mapped_file" if found.version == 1 else "shmem"] >= 0
        print("end", file=worker.stdin, flush=True)
        worker.wait()
        qemu.communicate()
    os.ftruncate(ram_fd, 0)
