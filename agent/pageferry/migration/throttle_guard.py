"""The process that gives a throttled guest its time back when the worker is gone.

Started by the worker before it takes any time, as ``python -m pageferry.migration.throttle_guard``.
Its standard input is a pipe that only the worker holds the other end of, so that it ends with the
worker however that ends; it says what is to be undone: ``T`` the vCPU threads are in a cgroup of
ours, ``S`` the guest is about to be stopped for a moment, ``C`` it runs again. It answers ``ready``
on standard output. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from pageferry.kernel.cpu_throttle import undo_throttle
from pageferry.qemu.bare import continue_paused

TRY_FOR_S = 300.0
"""QEMU's monitor takes the next client only when it has noticed that the last one is gone, and
answers only when its main loop gets to it: storage may hold that up for minutes."""


def main() -> int:
    """Wait for the end of the pipe, undo, end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--qmp", required=True)
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, b"ready\n")
    stopped = False
    while data := os.read(0, 4096):
        stopped = data.rstrip(b"T")[-1:] == b"S" if data.strip(b"T") else stopped
    if undo_throttle(arguments.pid):
        _say(f"the guest of QEMU process {arguments.pid} has its CPU time back")
    return _continue(arguments.qmp) if stopped else 0


def _continue(path: str) -> int:
    deadline = time.monotonic() + TRY_FOR_S
    while True:
        try:
            if continue_paused(path):
                _say(f"the guest at {path} was stopped for a moment, and runs again")
            return 0
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline or isinstance(error, FileNotFoundError):
                _say(f"the guest at {path} may be stopped: {error}. `cont` lets it run")
                return 1
            time.sleep(0.2)


def _say(message: str) -> None:
    try:
        print(f"pageferry.throttle WARNING {message}", file=sys.stderr, flush=True)
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main())
