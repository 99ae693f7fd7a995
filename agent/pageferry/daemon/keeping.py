"""Links to workers that outlive the daemon: systemd keeps them for the next one.

A worker cancels its migration when nobody holds the other end of its link. As long as systemd has a
copy in its descriptor store (FileDescriptorStoreMax=), a restart or a crash of the daemon is no end
of the link, and the next daemon finds the copies among the descriptors that it is passed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pageferry.daemon.guests import Guest
from pageferry.daemon.migrations import Migration
from pageferry.daemon.systemd import ServiceManager
from pageferry.daemon.worker_process import WorkerProcess
from pageferry.model.parameters import MigrationParameters

NAME_PREFIX: Final = "worker."

_NAME: Final = re.compile(r"worker\.(source|destination)\.([0-9a-f]{8,64})")


def name_of(migration_id: str, role: str) -> str:
    """What a migration's link is called in the store."""
    return f"{NAME_PREFIX}{role}.{migration_id}"


def parse_name(name: str) -> tuple[str, str] | None:
    """The migration's ID and role; None where the name is no link's."""
    match = _NAME.fullmatch(name)
    return (match[2], match[1]) if match else None


class Keeper:
    """Has links kept, and forgotten."""

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager

    def keep(self, migration: Migration, worker: WorkerProcess) -> None:
        """Let systemd hold the link, from when the worker has its job until `forget`."""
        self._manager.keep(name_of(migration.migration_id, migration.role), worker.link_fd())

    def forget(self, migration_id: str, role: str) -> None:
        """The worker has said its last word, or is no more."""
        self._manager.forget(name_of(migration_id, role))


def from_job(packet: dict[str, object]) -> Migration:
    """The migration that an adopted worker works on, by the job that it was given.

    Raises ValueError, TypeError, LookupError or RefusedError on what is no job.
    """
    job = packet["job"]
    if not isinstance(job, dict):
        raise TypeError("job")
    label, qmp = str(job["guest"]), Path(str(job["qmp"]))
    migration = Migration(
        str(job["migration-id"]),
        str(job["role"]),
        Guest("" if label == str(qmp) else label, qmp),
        MigrationParameters.from_dict(job.get("parameters") or {}),
    )
    migration.fingerprint = str(job.get("fingerprint", ""))
    if "host" in job and "port" in job:
        migration.update({**migration.info, "destination": f"{job['host']}:{job['port']}"})
    return migration
