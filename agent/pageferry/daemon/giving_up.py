"""A source that has had no answer to its commit asks for its guest back: the destination's part.

It is a cancel, no more: a worker that has written that it was told to run the guest refuses it, and
what the journal says afterwards is all that the source may hear.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from pageferry.certificates.description import CertificateInfo
from pageferry.control.errors import CommandError
from pageferry.daemon.admission import check_same_certificate
from pageferry.daemon.hooks import Hooks
from pageferry.daemon.supervisor import Supervisor
from pageferry.migration.journal import JournalError
from pageferry.model.errors import PageferryError
from pageferry.model.phase import DestinationPhase

log = logging.getLogger(__name__)

GIVE_UP_S: Final = 20.0
"""How long the worker may take: it ends its QEMU, which gives a guest's memory back."""


async def give_up(
    supervisor: Supervisor, hooks: Hooks, migration_id: str, certificate: CertificateInfo | None
) -> bool:
    """Give the guest of *migration_id* up, if it was not taken. Whether this host's journal has the
    promise that it never runs here.

    *certificate* is that of whoever asks, who may send this guest here; while a worker has the
    migration it must be the one that the migration began with, as for its data connections.
    """
    log.info("%s: its source asks for the guest back", migration_id)
    try:
        migration = supervisor.migrations.by_id(migration_id, "destination")
        if migration is not None and not migration.finished.is_set():
            check_same_certificate(migration, certificate)
            await supervisor.cancel(migration)
            with trio.move_on_after(GIVE_UP_S):
                await migration.finished.wait()
            if not migration.finished.is_set():
                return False
        await supervisor.leftovers.settle(migration_id)
    except (CommandError, PageferryError, JournalError) as error:
        log.warning("%s: not given up: %s", migration_id, error)
        return False
    phase, _detail, _guest = await trio.to_thread.run_sync(
        hooks.journalled_phase, supervisor.config.state_directory, migration_id
    )
    return phase == DestinationPhase.ABORTED.value
