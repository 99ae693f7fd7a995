"""What the daemon remembers of each migration, running or finished."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from pageferry.control.info import FINAL_STATUSES
from pageferry.daemon.guests import Guest
from pageferry.daemon.worker_process import WorkerProcess
from pageferry.model.parameters import MigrationParameters

MAX_FINISHED: Final = 256
"""Finished migrations to remember: an evacuated host's worth, at about 2 KiB each."""


@dataclass(slots=True, eq=False)
class Migration:
    """One migration on this host, in the role of its source or its destination."""

    migration_id: str
    role: str
    guest: Guest
    parameters: MigrationParameters
    info: dict[str, Any] = field(default_factory=dict)
    worker: WorkerProcess | None = None
    fingerprint: str = ""
    """Of the certificate that the source came with; empty where it came without TLS."""
    announced: str = ""
    announced_residency: tuple[float, dict[str, Any]] = (-1.0, {})
    started_s: float = field(default_factory=time.time)
    cancel_asked: bool = False
    worker_started: trio.Event = field(default_factory=trio.Event)
    """Set once there is a worker to talk to, or when there will be none."""
    worker_ended: trio.Event = field(default_factory=trio.Event)
    finished: trio.Event = field(default_factory=trio.Event)
    setting: trio.Lock = field(default_factory=trio.Lock)
    """Held while parameters are being set."""
    set_error: dict[str, Any] | None = None
    set_was_answered: bool = False
    _set_answered: trio.Event = field(default_factory=trio.Event)
    _cancel_answer: bool | None = None
    _cancel_answered: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.update({"status": "setup", "phase": "look"})

    @property
    def status(self) -> str:
        """MigrationStatus, by QAPI's names."""
        return str(self.info.get("status", "none"))

    def answer_cancel(self, accepted: bool) -> None:
        """The worker says whether it cancels."""
        self._cancel_answer = accepted
        self._cancel_answered.set()

    def await_set_answer(self) -> trio.Event:
        """Before the worker is asked to set parameters: what its answer, or its end, will set."""
        self.set_error, self.set_was_answered = None, False
        self._set_answered = trio.Event()
        return self._set_answered

    def answer_set(self, error: dict[str, Any] | None) -> None:
        """The worker says whether it has taken the parameters."""
        self.set_error, self.set_was_answered = error, True
        self._set_answered.set()

    async def cancel_accepted(self) -> bool | None:
        """Wait for the worker's answer to a cancel; None when it ended without one."""
        await self._cancel_answered.wait()
        return self._cancel_answer

    def update(self, info: dict[str, Any]) -> None:
        """Take over what is reported; what is not stays. Who it is about only we say.

        A final status is kept back until `finish`: the worker may still be closing things, and
        until it has ended the guest is not free for another migration.
        """
        told = {
            **self.info,
            **info,
            "migration-id": self.migration_id,
            "guest": self.guest.label,
            "role": self.role,
        }
        if told.get("status") in FINAL_STATUSES:
            told["status"] = self.status if self.info else "setup"
        self.info = told

    def finish(self, info: dict[str, Any], error: dict[str, Any] | None) -> None:
        """The end. *error* is a report as of PageferryError, or None when it went well."""
        status = info.get("status")
        self.update(info)
        if error is not None:
            self.info["error"] = error
            self.info["error-desc"] = error.get("message", "")
            fallback = "cancelled" if error.get("kind") == "cancelled" else "failed"
            status = status if status in ("cancelled", "failed") else fallback
        elif status not in FINAL_STATUSES:
            status = "completed"
        self.info["status"] = status
        self.worker = None
        self.worker_started.set()
        self.worker_ended.set()
        self._cancel_answered.set()
        self._set_answered.set()
        self.finished.set()


class MigrationLog:
    """All migrations that are remembered, oldest first."""

    def __init__(self) -> None:
        self._migrations: dict[tuple[str, str], Migration] = {}

    def __iter__(self) -> Iterator[Migration]:
        return iter(list(self._migrations.values()))

    def add(self, migration: Migration) -> None:
        """Remember *migration*; forget the oldest finished ones that are too many."""
        self._migrations[migration.migration_id, migration.role] = migration
        finished = [each for each in self if each.finished.is_set()]
        for old in finished[: max(0, len(finished) - MAX_FINISHED)]:
            del self._migrations[old.migration_id, old.role]

    def by_id(self, migration_id: str, role: str | None = None) -> Migration | None:
        """The migration of this ID; where both its ends are here, the source's side of it."""
        for each_role in ("source", "destination") if role is None else (role,):
            found = self._migrations.get((migration_id, each_role))
            if found is not None:
                return found
        return None

    def of_guest(self, guest: Guest) -> Migration | None:
        """The last migration of this guest."""
        return next((each for each in reversed(list(self)) if each.guest.key == guest.key), None)

    def running(self) -> list[Migration]:
        """Those that have not ended."""
        return [each for each in self if not each.finished.is_set()]
