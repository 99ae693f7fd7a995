"""What was started of a destination's QEMU, and how it is ended with all that came with it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from pageferry.kernel.identity import ProcessIdentity, signal_process
from pageferry.migration import service
from pageferry.migration.answering import listens
from pageferry.migration.owning import ended

log = logging.getLogger(__name__)

TERM_S: Final = 5.0
KILL_S: Final = 10.0
"""How long QEMU may take to end when asked, and by force: it gives back a guest's RAM."""

POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class LaunchedQemu:
    """A QEMU that was started for one migration, and what came with it."""

    identity: ProcessIdentity
    qmp: str
    files: tuple[str, ...]
    cgroup: str
    service: str = ""
    """systemd's that it is in; empty where it was a child of the agent's."""

    def as_notes(self) -> dict[str, Any]:
        """For the journal."""
        return {
            "process": self.identity.as_dict(),
            "qmp": self.qmp,
            "files": list(self.files),
            "cgroup": self.cgroup,
            "service": self.service,
        }

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> LaunchedQemu:
        """As `as_notes` has it. Raises ValueError, KeyError or TypeError on anything else."""
        return cls(
            ProcessIdentity.from_dict(notes["process"]),
            str(notes["qmp"]),
            tuple(str(each) for each in notes["files"]),
            str(notes["cgroup"]),
            str(notes.get("service", "")),
        )

    async def end(self) -> bool:
        """End it and clear away what came with it. Whether it has ended; may be done again."""
        if self.service:
            # Its user is not ours, and we have no capability to send signals to it.
            await service.stop(self.service, self.identity)
            has_ended = await ended(self.identity, KILL_S)
        else:
            has_ended = await _end_by_signals(self.identity)
        if not has_ended:
            log.error("QEMU (process %d) does not end", self.identity.pid)
            return False
        remove_socket(self.qmp)
        remove_files(self.files)
        if self.cgroup:
            await remove_cgroup(Path(self.cgroup))
        return True


@dataclass(frozen=True, slots=True)
class AskedQemu:
    """What systemd was asked for, while it was not known whether it came about."""

    service: service.AskedFor
    qmp: str
    files: tuple[str, ...]

    def as_notes(self) -> dict[str, Any]:
        asked = {"service": self.service.name, "description": self.service.description}
        return {**asked, "qmp": self.qmp, "files": list(self.files)}

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> AskedQemu:
        """As `as_notes` has it. Raises KeyError or TypeError on anything else."""
        asked = service.AskedFor(str(notes["service"]), str(notes["description"]))
        return cls(asked, str(notes["qmp"]), tuple(str(each) for each in notes["files"]))

    async def end(self) -> bool:
        """As of LaunchedQemu."""
        if not await self.service.end():
            return False
        remove_socket(self.qmp)
        remove_files(self.files)
        return True


def _read_unrecorded(path: Path) -> LaunchedQemu | AskedQemu:
    notes = json.loads(path.read_bytes())
    return LaunchedQemu.from_notes(notes) if "process" in notes else AskedQemu.from_notes(notes)


async def end_unrecorded(path: Path) -> bool:
    """End the QEMU that the file at *path* is about, of a migration whose journal is empty. Whether
    nothing is left of it.
    """
    try:
        launched = _read_unrecorded(path)
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        log.error("%s does not say what was started: %r", path, error)
        return False
    has_ended = await launched.end()
    if has_ended:
        remove_files([str(path)])
    return has_ended


async def _end_by_signals(identity: ProcessIdentity) -> bool:
    """Whether that process has ended, after it was asked to, or made to."""
    for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        signal_process(identity, number)
        if await ended(identity, patience_s):
            return True
    return False


def remove_socket(path: str) -> None:
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode) and not listens(path):
            os.unlink(path)


def remove_files(paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)


async def remove_cgroup(path: Path) -> None:
    """As soon as all that ended has left it."""
    trouble = ""
    with trio.move_on_after(KILL_S):
        while trouble := _try_to_remove(path):  # noqa: ASYNC110 - no event tells
            await trio.sleep(POLL_S)
    if trouble:
        log.warning("cannot remove the cgroup %s: %s", path, trouble)


def _try_to_remove(folder: Path) -> str:
    """Why it is still there; empty when it is not."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(error.strerror)
    return ""
