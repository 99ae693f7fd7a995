"""What the lab switches on, it switches off again: on success, failure, interrupt and exit.

Every resource is a context manager built on :func:`undone_by`, which also registers the undoing for
the end of the process. :func:`orderly_termination` turns SIGTERM and SIGHUP into an ordinary
unwinding. What a killed lab left behind carries its process's number in its name, and the next lab
that starts removes it (:func:`left_by_the_dead`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

PREFIX = "pageferry-lab"

_pending: list[Callable[[], None]] = []
_serial = iter(range(1, 1 << 62))


class LabError(Exception):
    """The lab could not set something up; the message says what and what to do about it."""


def lab_name(what: str) -> str:
    """A name for a resource of this process, unique on the host."""
    return f"{PREFIX}-{os.getpid()}-{next(_serial)}-{what}"


def left_by_the_dead(name: str) -> bool:
    """Whether `name` is one of :func:`lab_name`'s from a process that is gone."""
    match = re.match(rf"{PREFIX}-(\d+)-", name)
    return match is not None and not os.path.exists(f"/proc/{match[1]}")


@contextlib.contextmanager
def undone_by(undo: Callable[[], None]) -> Iterator[None]:
    """Run `undo` once: at the end of the block, or when the process exits within it."""
    _pending.append(undo)
    try:
        yield
    finally:
        if undo in _pending:
            _pending.remove(undo)
            undo()


@atexit.register
def _undo_all() -> None:
    while _pending:
        undo = _pending.pop()
        with contextlib.suppress(Exception):
            undo()


@contextlib.contextmanager
def orderly_termination() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP end the process by SystemExit, so everything unwinds.

    Does nothing outside the main thread, where Python allows no signal handlers.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
