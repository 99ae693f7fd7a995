"""Calls of the control socket's commands: what to send, and what the answer is. No socket here.

Both clients have each of them as a method of the same name. A *guest* is its name, or the absolute
path of its QMP socket; a migration is named by its ID, or by its guest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pageferry.control.info import (
    Check,
    DaemonStatus,
    Estimate,
    GuestInfo,
    HistoryEntry,
    MigrationInfo,
    Residency,
    Settlement,
)

T = TypeVar("T")
E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A command, its arguments (None is left out), and how its answer is read."""

    command: str
    parse: Callable[[Any], T]
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _nothing(_answer: Any) -> None:
    return None


def _list_of(parse: Callable[[Mapping[str, Any]], E]) -> Callable[[Any], list[E]]:
    return lambda answer: [parse(each) for each in answer]


def _which(migration_id: str | None, guest: str | None) -> dict[str, Any]:
    return {"migration-id": migration_id, "guest": guest}


def status() -> Call[DaemonStatus]:
    """The daemon's state."""
    return Call("query-status", DaemonStatus.from_dict)


def migrate(
    guest: str,
    uri: str,
    *,
    destination_guest: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Call[str]:
    """Start a migration to the agent at *uri* (HOST or HOST:PORT); returns its ID at once.

    *parameters* by the names of query-migrate-parameters, as in ``{"downtime-limit": 100}``.
    """
    arguments = {
        "guest": guest,
        "uri": uri,
        "destination-guest": destination_guest,
        "parameters": dict(parameters) if parameters else None,
    }
    return Call("migrate", lambda answer: str(answer["migration-id"]), arguments)


def cancel(*, guest: str | None = None, migration_id: str | None = None) -> Call[None]:
    """Ask for a migration to be cancelled; its status tells when it has been.

    Refused when it is over, or has been committed.
    """
    return Call("migrate-cancel", _nothing, _which(migration_id, guest))


def query_migrate(
    *, guest: str | None = None, migration_id: str | None = None
) -> Call[MigrationInfo]:
    """One migration: by its ID, the last one of a guest, or the last one of all.

    Its ``migration_id`` is empty when there is none.
    """
    return Call("query-migrate", MigrationInfo.from_dict, _which(migration_id, guest))


def query_migrations() -> Call[list[MigrationInfo]]:
    """All migrations that the daemon remembers since it started, oldest first."""
    return Call("query-migrations", _list_of(MigrationInfo.from_dict))


def history(*, guest: str | None = None, limit: int | None = None) -> Call[list[HistoryEntry]]:
    """Migrations that are over, newest first, also from before the daemon started."""
    arguments = {"guest": guest, "limit": limit}
    return Call("query-migrate-history", _list_of(HistoryEntry.from_dict), arguments)


def query_guests() -> Call[list[GuestInfo]]:
    """All guests that the daemon knows."""
    return Call("query-guests", _list_of(GuestInfo.from_dict))


def set_parameters(
    values: Mapping[str, Any], *, guest: str | None = None, migration_id: str | None = None
) -> Call[None]:
    """Set parameters of a running migration, or else of those that start from now on.

    They are in effect on return.
    """
    arguments = {**values, **_which(migration_id, guest)}
    return Call("migrate-set-parameters", _nothing, arguments)


def parameters(
    *, guest: str | None = None, migration_id: str | None = None
) -> Call[dict[str, Any]]:
    """The parameters of a migration, or else of those that start from now on."""
    return Call("query-migrate-parameters", dict, _which(migration_id, guest))


def residency(guest: str, *, cells: int | None = None) -> Call[Residency]:
    """Where the guest's RAM is; with *cells* also a map of each block in so many cells at most."""
    return Call("query-residency", Residency.from_dict, {"guest": guest, "cells": cells})


def estimate(
    guest: str,
    *,
    sample_s: float | None = None,
    bandwidth: int | None = None,
    swap_bandwidth: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Call[Estimate]:
    """What a migration would cost. Takes *sample_s* seconds (2) and a little more.

    Rates in bytes per second.
    """
    arguments = {
        "guest": guest,
        "sample-time": sample_s,
        "bandwidth": bandwidth,
        "swap-bandwidth": swap_bandwidth,
        "parameters": dict(parameters) if parameters else None,
    }
    return Call("migrate-estimate", Estimate.from_dict, arguments)


def doctor(
    *, guest: str | None = None, uri: str | None = None, destination_guest: str | None = None
) -> Call[list[Check]]:
    """Everything that a migration needs: of this host, of its guests or of *guest* alone, and of
    the destination *uri* when it is given: with *guest*, which may have another name there, also
    whether that would find room."""
    arguments = {"guest": guest, "uri": uri, "destination-guest": destination_guest}
    return Call("query-doctor", _list_of(Check.from_dict), arguments)


def recover(
    migration_id: str | None = None, *, dry_run: bool | None = None
) -> Call[list[Settlement]]:
    """Settle a migration whose outcome is unknown, or all that are left over on that host. With
    *dry_run* nothing is done: each says what would be."""
    arguments = {"migration-id": migration_id, "dry-run": dry_run}
    return Call("migrate-recover", _list_of(Settlement.from_dict), arguments)
