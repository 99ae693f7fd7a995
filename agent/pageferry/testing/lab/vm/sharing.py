"""This host's root for a VM: virtiofsd, which comes with Debian's QEMU 7.2."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from pageferry.testing.lab.cleanup import LabError, undone_by
from pageferry.testing.lab.packages import qemu_7

PROGRAM = Path("/usr/lib/qemu/virtiofsd")

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0


def virtiofsd() -> Path:
    """The program: the installed one, else that of the unpacked QEMU 7.2. LabError without any."""
    unpacked = Path(*qemu_7().path.parts[:-3], *PROGRAM.parts[1:])
    for path in (PROGRAM, unpacked):
        if path.exists():
            return path
    raise LabError(f"no {PROGRAM}: install qemu-system-common of Debian 12")


@contextlib.contextmanager
def shared_root(folder: Path) -> Iterator[Path]:
    """virtiofsd for ``/``, with its socket in `folder`, for one QEMU. LabError when it fails.

    The VM mounts it read-only, and what it has read it need not ask for again.
    """
    socket_path, log = folder / "root.sock", folder / "virtiofsd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(str(virtiofsd()), f"--socket-path={socket_path}", "-f", "-o", "source=/"),
                *("-o", "cache=always", "-o", "sandbox=chroot", "-o", "log_level=err"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=qemu_7().full_environment(),
        )

    def end() -> None:
        process.kill()
        process.wait(STOP_TIMEOUT_S)

    with undone_by(end):
        deadline = time.monotonic() + START_TIMEOUT_S
        while not socket_path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"virtiofsd did not start: {log.read_text(errors='replace')}")
            time.sleep(0.02)
        yield socket_path
