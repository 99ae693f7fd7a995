"""A disk with a known latency: a file whose every read is answered late, by the same time.

A real disk answers in its own time, which differs by three orders of magnitude between machines,
and the kernel's throttle lets requests through in bursts. Where a test depends on how long a read
is in flight, the file is served by a FUSE server of the lab's own (``late.c``), below QEMU. Reads
past the host's cache behave as on any disk: their pages are pinned when they are submitted and
filled when the answer comes. Needs root and /dev/fuse.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pageferry.testing.lab.cache import cached, digest_of_files
from pageferry.testing.lab.cleanup import LabError, undone_by
from pageferry.testing.lab.hosts import scratch_folder
from pageferry.testing.lab.programs import build, try_run

COMPILER = ("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")

STOP_TIMEOUT_S = 10.0


@contextlib.contextmanager
def late_file(image: Path, delay_ms: float) -> Iterator[Path]:
    """A file with the contents of `image` whose reads take `delay_ms`, however many there are."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise LabError("there is no /dev/fuse to serve a slow disk by: load the module fuse")
    with scratch_folder() as folder:
        mountpoint = folder / "image"
        mountpoint.touch()
        command = [str(_server()), str(mountpoint), str(image), str(int(delay_ms * 1000))]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with undone_by(lambda: _end(server, mountpoint)):
            assert server.stdout is not None
            if server.stdout.readline() != b"ready\n":
                raise LabError(f"no slow disk: its server ended with status {server.wait()}")
            yield mountpoint


def _server() -> Path:
    source = Path(__file__).parent / "late.c"

    def make(folder: Path) -> None:
        build(*COMPILER, "-o", str(folder / "late"), str(source))

    return cached(f"late/{digest_of_files(source)}", make) / "late"


def _end(server: subprocess.Popen[bytes], mountpoint: Path) -> None:
    # The end of its input ends it, and it unmounts; a QEMU that still waits for it gets errors.
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.close()
    server.stdout.close()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
        try_run("umount", "--lazy", str(mountpoint))
