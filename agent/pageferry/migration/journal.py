"""The journal of one migration on one host: each phase is on disk before it is acted on.

One file per migration and side in the state directory, one JSON record per line, appended and
fsynced. Nothing is ever rewritten, so a crash can only cut the last line short; a line without its
newline was never acted on (the act comes after the fsync) and is ignored when the file is read.

What a reader may conclude is in `model.phase`; what is done about it is in `migration.recovery`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from pageferry.model.phase import DestinationPhase, SourcePhase, check_transition

MIGRATION_ID = re.compile(r"[0-9a-f]{8,64}")
"""What a migration ID may look like: it becomes part of a file's name, and a peer chooses it."""

MAX_JOURNAL_BYTES = 1 << 20
"""A journal has tens of records of a few hundred bytes; more than this is not one of ours."""


_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC


class JournalError(Exception):
    """The journal cannot be written or read; nothing may be done that it should have recorded."""


@dataclass(frozen=True, slots=True)
class JournalState:
    """What a journal says: the last phase and everything that was noted on the way to it."""

    migration_id: str
    role: str
    phase: str
    notes: dict[str, Any]
    path: Path
    began_ns: int = 0
    """When the first record was written, in nanoseconds since 1970."""
    ended_ns: int = 0
    """When the last one was."""


def journal_path(state_dir: Path, migration_id: str, role: str) -> Path:
    """Where the journal of this migration lies. Raises JournalError on an ID not fit for a name."""
    if not MIGRATION_ID.fullmatch(migration_id):
        raise JournalError(f"{migration_id[:80]!r} is not a migration ID")
    return state_dir / f"{migration_id}.{role}.journal"


class Journal:
    """The journal being written. `record` returns only when the phase is on disk."""

    def __init__(self, path: Path, migration_id: str, role: str, fd: int) -> None:
        self.path = path
        self.phase: str | None = None
        self._migration_id = migration_id
        self._role = role
        self._lock = trio.Lock()
        self._fd = fd

    @classmethod
    def create(cls, state_dir: Path, migration_id: str, role: str) -> Journal:
        """Start the journal of a new migration. Raises JournalError when it exists or cannot be."""
        path = journal_path(state_dir, migration_id, role)
        try:
            fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            _fsync_directory(state_dir)
        except FileExistsError as error:
            raise JournalError(f"{path} exists: this migration was tried before") from error
        except OSError as error:
            raise JournalError(f"cannot create {path}: {error.strerror}") from error
        return cls(path, migration_id, role, fd)

    @classmethod
    def reopen(cls, state: JournalState) -> Journal:
        """Go on with the journal that *state* was read from. Raises JournalError.

        A line that a crash cut short is cut off, or it would spoil the next one.
        """
        try:
            fd = os.open(state.path, _FLAGS)
            data = state.path.read_bytes()
            os.ftruncate(fd, data.rfind(b"\n") + 1)
        except OSError as error:
            raise JournalError(f"cannot open {state.path}: {error.strerror}") from error
        journal = cls(state.path, state.migration_id, state.role, fd)
        journal.phase = state.phase
        return journal

    async def record(self, phase: SourcePhase | DestinationPhase, **notes: Any) -> None:
        """Put *phase* on disk. Act on it only afterwards.

        Raises JournalError when the disk refuses, LocalProtocolError when the phase may not follow
        the last one. A cancellation waits for the write: the record is on disk whole.
        """
        async with self._lock:
            self._check(phase)
            record = {
                "migration-id": self._migration_id,
                "role": self._role,
                "phase": phase.value,
                "time-ns": time.time_ns(),
                "notes": notes,
            }
            line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
            try:
                await trio.to_thread.run_sync(self._append, line)
            except OSError as error:
                raise JournalError(f"cannot write {self.path}: {error.strerror}") from error
            self.phase = phase.value

    def _check(self, phase: SourcePhase | DestinationPhase) -> None:
        if self.phase is None:
            return
        if isinstance(phase, SourcePhase):
            check_transition(SourcePhase(self.phase), phase)
        else:
            check_transition(DestinationPhase(self.phase), phase)

    def _append(self, line: bytes) -> None:
        written = os.write(self._fd, line)
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file. What was recorded stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_journal(path: Path) -> JournalState | None:
    """What the journal at *path* says, or None where it holds no complete record.

    Raises JournalError when the file cannot be read or a complete line of it makes no sense.
    """
    try:
        if path.stat().st_size > MAX_JOURNAL_BYTES:
            raise JournalError(f"{path} is too long to be a journal")
        data = path.read_bytes()
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror}") from error
    state: JournalState | None = None
    for record in _complete_records(data, path):
        notes = dict(state.notes) if state else {}
        notes.update(record["notes"])
        written_ns = int(record.get("time-ns", 0))
        state = JournalState(
            record["migration-id"],
            record["role"],
            record["phase"],
            notes,
            path,
            state.began_ns if state else written_ns,
            written_ns,
        )
    return state


def _complete_records(data: bytes, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["notes"], dict):
                raise TypeError("notes")
            phases = SourcePhase if record["role"] == "source" else DestinationPhase
            phases(record["phase"])
            str(record["migration-id"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise JournalError(f"{path}, line {number}: not a journal record") from error
        yield record


def journals(state_dir: Path) -> list[Path]:
    """All journals in the state directory, oldest name first."""
    return sorted(state_dir.glob("*.journal"))


def _fsync_directory(directory: Path) -> None:
    """A new file's name is on disk only after its directory has been synced (fsync(2))."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
