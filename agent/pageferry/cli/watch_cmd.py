"""`pageferry watch`: attach to a migration that runs."""

from __future__ import annotations

import argparse
import signal

import trio

from pageferry.cli.attached import Attached, follow
from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.presenting import presenter_for
from pageferry.cli.values import MIGRATION_COMPLETION
from pageferry.cli.watching import find_migration
from pageferry.control.client import open_client
from pageferry.control.errors import CommandError

SUMMARY = "attach to a running migration"

DESCRIPTION = """\
Follows the running migration of GUEST, or the one with that ID, as `pageferry migrate` does: the
same picture, the same JSON lines, the same question at Ctrl-C, the same exit status. Any number of
terminals may be attached to one migration. One that is over is shown as it ended. A daemon that is
restarted is waited for.

Where nobody can be asked, without a terminal, SIGINT and SIGTERM only end the watching: the
migration goes on, and the exit status is 0, after a last line with "event":"detached"."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    reference = parser.add_argument(
        "reference", metavar="GUEST|ID", help="the guest, or the migration's ID or its beginning"
    )
    reference.complete = MIGRATION_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("--json", action="store_true", help="JSON lines, also on a terminal")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError and DaemonUnreachableError."""
    presenter = presenter_for(as_json=arguments.json)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with open_client(arguments.socket) as client:
            info = await find_migration(client, arguments.reference)
            if info is None:
                raise CommandError(f"{arguments.reference} is in no migration")
            presenter.started(info.migration_id, info.guest, info.destination or "this host")
            try:
                attached = Attached(info.migration_id, presenter, only_watches=True)
                return await follow(arguments.socket, client, attached, signals)
            finally:
                presenter.close()
