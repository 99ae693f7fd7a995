"""Migrations that are over, remembered across restarts of the daemon.

One JSON record per line in the state directory, appended when a migration ends. A migration that
ended while no daemon ran, or was settled by recovery, is found by its journal, which knows less.

Journals are what recovery rests on, and a peer may ask for one long after the end. So closed ones
are kept for JOURNAL_DAYS, and longer as long as there are few.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pageferry.control.info import FINAL_STATUSES
from pageferry.daemon.settling import STATUS_OF_PHASE, ending_of
from pageferry.migration.journal import JournalError, JournalState, journals, read_journal

log = logging.getLogger(__name__)

MAX_RECORDS: Final = 1000
"""Years of a host that migrates for maintenance, weeks of one that is balanced; 2 MiB."""

JOURNAL_DAYS: Final = 30
MAX_JOURNALS: Final = 1000

_NS_PER_S: Final = 1_000_000_000
_NS_PER_DAY: Final = 86_400 * _NS_PER_S

Record = dict[str, Any]


class History:
    """Reads its file when made, and appends to it. A file that cannot be written is logged once."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._path = state_dir / "history.jsonl"
        self._records: dict[tuple[str, str], Record] = {}
        self._lines = 0
        self._is_writable = True
        for record in self._read():
            self._keep(record)

    def add(self, record: Record) -> None:
        """Remember a migration that is over. Replaces what its journal told."""
        self._keep(record)
        line = json.dumps(record, separators=(",", ":")) + "\n"
        try:
            if self._lines >= 2 * MAX_RECORDS:
                self._rewrite()
            else:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line)
                self._lines += 1
        except OSError as error:
            if self._is_writable:
                log.error("history: cannot write %s: %s", self._path, error.strerror)
            self._is_writable = False

    def newest(self, guest: str | None = None, limit: int | None = None) -> list[Record]:
        """The last *limit* records, newest first."""
        found = sorted(self._records.values(), key=lambda record: record["ended"], reverse=True)
        if guest is not None:
            found = [record for record in found if record["guest"] == guest]
        return found[:limit]

    def last_state(self, migration_id: str) -> dict[str, Any] | None:
        """What query-migrate says of a migration that is over; where both its ends were here, of
        the source's side. None where it is not remembered."""
        for role in ("source", "destination"):
            record = self._records.get((migration_id, role))
            if record is not None:
                return _info_of(record)
        return None

    def last_state_of_guest(self, guest: str) -> dict[str, Any] | None:
        """The same of the last migration of *guest*."""
        return next((_info_of(record) for record in self.newest(guest, 1)), None)

    def take_in_journals(self, now_ns: int) -> None:
        """Add what only the journals know, and remove closed journals that are too old and many."""
        closed: list[tuple[int, Path]] = []
        for path in journals(self._state_dir):
            try:
                state = read_journal(path)
            except JournalError:
                continue  # open_migrations complains of it
            if state is None or state.phase not in STATUS_OF_PHASE:
                continue
            closed.append((state.ended_ns, path))
            if (state.migration_id, state.role) not in self._records:
                self.add(_record_of(state))
        closed.sort()
        for ended_ns, path in closed[: max(0, len(closed) - MAX_JOURNALS)]:
            if now_ns - ended_ns > JOURNAL_DAYS * _NS_PER_DAY:
                path.unlink(missing_ok=True)

    def _keep(self, record: Record) -> None:
        key = (record["migration-id"], record["role"])
        self._records.pop(key, None)
        self._records[key] = record
        while len(self._records) > MAX_RECORDS:
            del self._records[next(iter(self._records))]

    def _read(self) -> Iterator[Record]:
        try:
            lines = self._path.read_bytes().split(b"\n")
        except OSError:
            return
        for line in lines:
            if not line:
                continue
            self._lines += 1
            try:
                record = json.loads(line)
                _check(record)
            except (ValueError, TypeError, KeyError):
                continue  # cut short by a crash, or written by another version
            yield record

    def _rewrite(self) -> None:
        """Drop what has been forgotten. A crash leaves the old file or the new one."""
        text = "".join(
            json.dumps(record, separators=(",", ":")) + "\n" for record in self._records.values()
        )
        fresh = self._path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self._lines = len(self._records)


def record_of(info: dict[str, Any], started_s: float, ended_s: float) -> Record:
    """The record of a migration that the daemon saw to its end; *info* as of query-migrate."""
    record: Record = {
        "migration-id": info["migration-id"],
        "role": info["role"],
        "guest": info["guest"],
        "status": info["status"],
        "started": round(started_s, 3),
        "ended": round(ended_s, 3),
        "info": info,
    }
    if info.get("destination"):
        record["destination"] = info["destination"]
    if info.get("error-desc"):
        record["reason"] = info["error-desc"]
    return record


def _record_of(state: JournalState) -> Record:
    status, error = ending_of(state)
    record: Record = {
        "migration-id": state.migration_id,
        "role": state.role,
        "guest": str(state.notes.get("guest", "")),
        "status": status,
        "started": round(state.began_ns / _NS_PER_S, 3),
        "ended": round(state.ended_ns / _NS_PER_S, 3),
    }
    if "host" in state.notes and "port" in state.notes:
        record["destination"] = f"{state.notes['host']}:{state.notes['port']}"
    if error is not None:
        record.update(reason=error["message"], error=error)
    return record


def _info_of(record: Record) -> dict[str, Any]:
    told: dict[str, Any] = {
        key: record[key]
        for key in ("status", "migration-id", "guest", "role", "destination", "error")
        if key in record
    }
    if "reason" in record:
        told["error-desc"] = record["reason"]
    return {**told, **record.get("info", {})}


def _check(record: Any) -> None:
    """Raise unless a line is a record: it may have been written by another version."""
    for key in ("migration-id", "role", "guest"):
        if not isinstance(record[key], str):
            raise TypeError(key)
    if record["status"] not in FINAL_STATUSES:
        raise ValueError("status")
    float(record["started"]), float(record["ended"])
