"""Running the system's tools: swap, loop devices and the like."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pageferry.testing.lab.cleanup import LabError, undone_by

TIMEOUT_S = 120


def run(*command: str, timeout_s: float = TIMEOUT_S) -> str:
    """Standard output of a tool that must succeed. LabError with what it said otherwise, or when
    it takes too long.
    """
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "PATH": path},
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{command[0]} did not end within {timeout_s} s") from error
    except OSError as error:
        raise LabError(f"{command[0]}: {error.strerror}; install util-linux") from error
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def build(*command: str) -> None:
    """Compile or link something of the lab's own. LabError with what the compiler said."""
    try:
        run(*command)
    except LabError as error:
        raise LabError(f"{error} (the lab needs gcc, binutils and libc6-dev)") from error


def try_run(*command: str) -> None:
    """Run a tool whose failure does not matter."""
    with contextlib.suppress(LabError):
        run(*command)


@contextlib.contextmanager
def loop_device(path: Path, *options: str) -> Iterator[str]:
    """A loop device over a file, made with these options of losetup; needs root."""
    device = run("losetup", "--find", "--show", *options, str(path)).strip()
    with undone_by(lambda: try_run("losetup", "--detach", device)):
        yield device


def file_system(path: Path) -> str:
    """The kind of file system that a path lies on, such as ``tmpfs``."""
    return run("stat", "--file-system", "--format=%T", str(path)).strip()


def end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """End a program in order, by force when that takes too long. Does nothing when it has ended."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
