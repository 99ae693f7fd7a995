"""A lock for measurements, for a machine on which others measure too."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Hold the lock (flock) on *path* for the length of the context; None: no lock."""
    if path is None:
        yield
        return
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
