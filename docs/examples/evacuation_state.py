"""The state of an evacuation on disk, so that it can be gone on with after a crash or `kill -9`.

One JSON file, replaced as a whole and synced before anything is done that it speaks of: it can be
behind the facts (a migration that it calls *starting* may run), never ahead of them. A lock beside
it keeps a second evacuation off; the kernel lets go of it with the process.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from evacuation_plan import Cost, Failure, Guest, State

VERSION: Final = 1


class StateError(Exception):
    """The state cannot be used; the message says why and what to do. Nothing was started."""


class StateFile:
    """The file of one evacuation, of the guests of one daemon (named by its control socket)."""

    def __init__(self, path: Path, source: Path) -> None:
        self.path = path
        self._source = str(source)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others off while we work. Raises StateError when one is at work, OSError."""
        with self.path.with_name(self.path.name + ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(f"another evacuation works with {self.path}") from None
            yield

    def load(self) -> dict[str, Guest]:
        """The guests by name; none when there is no file yet. Raises StateError, OSError."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        try:
            told = json.loads(text)
            if told["version"] != VERSION:
                raise ValueError(f"it has version {told['version']}, not {VERSION}")
            if told["source"] != self._source:
                raise ValueError(f"it is of the daemon at {told['source']}")
            guests = [_guest(each) for each in told["guests"]]
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"{self.path} is no state of this evacuation: {error!r}; name another file, or"
                " remove it and see `pageferry status` for what runs"
            ) from error
        return {guest.name: guest for guest in guests}

    def save(self, guests: Iterable[Guest]) -> None:
        """Replace the file. On return it is on disk; on OSError the one before is still there."""
        told = {
            "version": VERSION,
            "source": self._source,
            "guests": [dataclasses.asdict(guest) for guest in guests],
        }
        new = self.path.with_name(self.path.name + ".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(told, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _guest(told: Mapping[str, Any]) -> Guest:
    values = dict(told)
    cost = values["cost"]
    values["state"] = State(values["state"])
    values["cost"] = None if cost is None else Cost(**cost)
    values["failures"] = tuple(Failure(**each) for each in values["failures"])
    return Guest(**values)
