"""The journal of one migration on one host: each phase is on disk before it is acted on.

One file per migration and side in the state directory, one JSON record per line, appended and
fsynced. Nothing that was recorded is ever rewritten, so a crash can only cut the last line short; a
line without its newline was never acted on (the act comes after the fsync) and is ignored when the
file is read. What a failed write left behind is cut off again; should even that fail, nothing more
is written to this file, and whoever opens it next cuts it off.

Each record carries a checksum, and records must follow each other as `model.phase` says. A journal
with a complete line that is damaged, or with a phase that this version does not know, is reported
and left alone: a phase that was guessed could let a guest run twice.

Whoever may write a journal holds a lock on it (flock) for as long as it lives, and the kernel lets
go of it with the process. So nobody settles a migration beside its worker, or twice at once.

What is done about a phase is in `policy.ownership` and `migration.recovery`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from pageferry.model.phase import (
    DestinationPhase,
    SourcePhase,
    check_transition,
    may_follow,
    phase_of,
)
from pageferry.testing.faults import (
    BEFORE_SYNC,
    BEFORE_WRITE,
    HALF_WRITTEN,
    fault_point,
    in_phase,
    journalling,
)

MIGRATION_ID = re.compile(r"[0-9a-f]{8,64}")
"""What a migration ID may look like: it becomes part of a file's name, and a peer chooses it."""

ROLES: Final = ("source", "destination")

MAX_JOURNAL_BYTES = 1 << 20
"""A journal has tens of records of a few hundred bytes; more than this is not one of ours."""

_NAME = re.compile(r"(?P<id>[0-9a-f]{8,64})\.(?P<role>source|destination)\.journal")

_SEALED = re.compile(rb'(?P<body>.*),"crc32":"(?P<sum>[0-9a-f]{8})"\}', re.DOTALL)

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class JournalError(Exception):
    """The journal cannot be written or read; nothing may be done that it should have recorded."""


class JournalBusyError(JournalError):
    """Another process or task works on this migration."""


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

    @property
    def known_phase(self) -> SourcePhase | DestinationPhase:
        """The phase as what it is."""
        return phase_of(self.role, self.phase)


def journal_path(state_dir: Path, migration_id: str, role: str) -> Path:
    """Where the journal of this migration lies. Raises JournalError on an ID not fit for a name."""
    if not MIGRATION_ID.fullmatch(migration_id):
        raise JournalError(f"{migration_id[:80]!r} is not a migration ID")
    return state_dir / f"{migration_id}.{role}.journal"


def unrecorded_path(state_dir: Path, migration_id: str) -> Path:
    """Where a destination's worker keeps what QEMU it has started until its journal says so: for
    whoever comes after it. Not synced, since QEMU does not outlive a crash of the host.
    """
    return state_dir / f"{migration_id}.launched"


class Journal:
    """The journal being written. `record` returns only when the phase is on disk."""

    def __init__(self, path: Path, migration_id: str, role: str, fd: int) -> None:
        self.path = path
        self.phase: str | None = None
        self._migration_id = migration_id
        self._role = role
        self._lock = trio.Lock()
        self._fd = fd
        self._length_bytes = 0
        self._is_spoilt = False

    @classmethod
    def create(cls, state_dir: Path, migration_id: str, role: str) -> Journal:
        """Start the journal of a new migration. Raises JournalError when it exists or cannot be."""
        path = journal_path(state_dir, migration_id, role)
        try:
            fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise JournalError(f"{path} exists: this migration was tried before") from error
        except OSError as error:
            raise JournalError(f"cannot create {path}: {error.strerror}") from error
        try:
            _lock(fd, path)
            _fsync_directory(state_dir)
        except OSError as error:
            os.close(fd)
            raise JournalError(f"cannot create {path}: {error.strerror}") from error
        except JournalError:
            os.close(fd)
            raise
        return cls(path, migration_id, role, fd)

    @classmethod
    def reopen(cls, path: Path) -> tuple[Journal, JournalState | None]:
        """Go on with the journal at *path*, and what it says; None where it holds no record.

        Raises JournalBusyError while another process works on it, JournalError when it cannot be
        read. A line that a crash cut short is cut off, or it would spoil the next one.
        """
        try:
            fd = os.open(path, _FLAGS)
        except OSError as error:
            raise JournalError(f"cannot open {path}: {error.strerror}") from error
        try:
            _lock(fd, path)
            data = _contents(fd, path)
            state = _state(data, path)
            whole_bytes = data.rfind(b"\n") + 1
            if whole_bytes != len(data):
                os.ftruncate(fd, whole_bytes)
                os.fsync(fd)
        except OSError as error:
            os.close(fd)
            raise JournalError(f"cannot open {path}: {error.strerror}") from error
        except JournalError:
            os.close(fd)
            raise
        migration_id, role = _named(path)
        journal = cls(path, migration_id, role, fd)
        journal._length_bytes = whole_bytes
        journal.phase = state.phase if state else None
        return journal, state

    async def record(self, phase: SourcePhase | DestinationPhase, **notes: Any) -> None:
        """Put *phase* on disk. Act on it only afterwards.

        Raises JournalError when the disk refuses, LocalProtocolError when the phase may not follow
        the last one. After a JournalError the record may be found on disk all the same, when not
        even what was written of it could be taken back. A cancellation waits for the write: the
        record is on disk whole.
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
            try:
                await trio.to_thread.run_sync(self._append, _sealed(record), phase)
            except OSError as error:
                raise JournalError(f"cannot write {self.path}: {error.strerror}") from error
            self.phase = phase.value

    def _check(self, phase: SourcePhase | DestinationPhase) -> None:
        if self._is_spoilt:
            raise JournalError(f"{self.path} could not be repaired after a failed write")
        if self.phase is None:
            return
        if isinstance(phase, SourcePhase):
            check_transition(SourcePhase(self.phase), phase)
        else:
            check_transition(DestinationPhase(self.phase), phase)

    def _append(self, line: bytes, phase: SourcePhase | DestinationPhase) -> None:
        try:
            fault_point(journalling(BEFORE_WRITE, phase))
            written = os.write(self._fd, line[: len(line) // 2])
            fault_point(journalling(HALF_WRITTEN, phase))
            written += os.write(self._fd, line[written:])
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fault_point(journalling(BEFORE_SYNC, phase))
            os.fsync(self._fd)
        except OSError:
            self._take_back_write()
            raise
        self._length_bytes += len(line)
        fault_point(in_phase(phase))

    def _take_back_write(self) -> None:
        """What was written of a record that failed would spoil the next one."""
        try:
            os.ftruncate(self._fd, self._length_bytes)
            os.fsync(self._fd)
        except OSError:
            self._is_spoilt = True

    def close(self) -> None:
        """Close the file and let go of the lock. What was recorded stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_journal(path: Path, *, synced: bool = False) -> JournalState | None:
    """What the journal at *path* says, or None where it holds no complete record.

    With *synced*, what is returned is on disk: needed before anybody else is told. Raises
    JournalError when the file cannot be read or a complete line of it makes no sense.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror}") from error
    try:
        state = _state(_contents(fd, path), path)
        if synced:
            os.fsync(fd)
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    return state


def journals(state_dir: Path) -> list[Path]:
    """All journals in the state directory, oldest name first."""
    return sorted(path for path in state_dir.glob("*.journal") if _NAME.fullmatch(path.name))


def _named(path: Path) -> tuple[str, str]:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise JournalError(f"{path} is not named as a journal is")
    return match["id"], match["role"]


def _contents(fd: int, path: Path) -> bytes:
    if os.fstat(fd).st_size > MAX_JOURNAL_BYTES:
        raise JournalError(f"{path} is too long to be a journal")
    data = b""
    while piece := os.pread(fd, MAX_JOURNAL_BYTES, len(data)):
        data += piece
        if len(data) > MAX_JOURNAL_BYTES:
            raise JournalError(f"{path} is too long to be a journal")
    return data


def _state(data: bytes, path: Path) -> JournalState | None:
    migration_id, role = _named(path)
    state: JournalState | None = None
    for number, record in _complete_records(data, path):
        where = f"{path}, line {number}"
        if (record["migration-id"], record["role"]) != (migration_id, role):
            raise JournalError(f"{where}: a record of another migration")
        try:
            phase = phase_of(role, record["phase"])
        except ValueError as error:
            raise JournalError(
                f"{where}: phase {str(record['phase'])[:40]!r} is not known to this version"
            ) from error
        if state is not None and not _may_follow(state.known_phase, phase):
            raise JournalError(f"{where}: phase {phase.value} cannot follow {state.phase}")
        notes = {**(state.notes if state else {}), **record["notes"]}
        began_ns = state.began_ns if state else record["time-ns"]
        state = JournalState(
            migration_id, role, phase.value, notes, path, began_ns, record["time-ns"]
        )
    return state


def _may_follow(old: SourcePhase | DestinationPhase, new: SourcePhase | DestinationPhase) -> bool:
    if isinstance(old, SourcePhase) and isinstance(new, SourcePhase):
        return may_follow(old, new)
    if isinstance(old, DestinationPhase) and isinstance(new, DestinationPhase):
        return may_follow(old, new)
    return False


def _complete_records(data: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            record = _opened(line)
            if not (isinstance(record, dict) and isinstance(record["notes"], dict)):
                raise TypeError("no record")
            if not all(isinstance(record[key], str) for key in ("migration-id", "role", "phase")):
                raise TypeError("no record")
            if type(record["time-ns"]) is not int:
                raise TypeError("no record")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise JournalError(f"{path}, line {number}: damaged, or no journal record") from error
        yield number, record


def _sealed(record: dict[str, Any]) -> bytes:
    """The line of this record: its JSON, with the CRC-32 of the JSON without it as last key."""
    body = json.dumps(record, separators=(",", ":")).encode()
    return body[:-1] + b',"crc32":"%08x"}\n' % zlib.crc32(body)


def _opened(line: bytes) -> Any:
    match = _SEALED.fullmatch(line)
    if match is None:
        raise ValueError("no checksum")
    body = match["body"] + b"}"
    if zlib.crc32(body) != int(match["sum"], 16):
        raise ValueError("wrong checksum")
    return json.loads(body)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise JournalBusyError(f"{path} is in the hands of another process or task") from None


def holder_of(path: Path, locks: Path = Path("/proc/locks")) -> int | None:
    """The process that may write the journal at *path* just now; None when nobody does.

    0 for one that this process cannot name (in another PID namespace: proc(5), /proc/locks).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _named_holder(found, locks)
        return None
    finally:
        os.close(fd)


def _named_holder(of: os.stat_result, locks: Path) -> int:
    # As the kernel writes it (fs/locks.c, lock_get_status). The device of a file may have another
    # number there (btrfs): the inode's and the kind of lock have to do.
    for line in locks.read_text().splitlines():
        words = line.split()
        if words[1:4] == ["FLOCK", "ADVISORY", "WRITE"]:
            pid, _, inode = words[4], *words[5].rpartition(":")[1:]
            if int(inode) == of.st_ino and int(pid) > 0:
                return int(pid)
    return 0


def _fsync_directory(directory: Path) -> None:
    """A new file's name is on disk only after its directory has been synced (fsync(2))."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
