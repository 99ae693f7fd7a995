"""`pageferry cancel`: end a migration, with the guest where it is."""

from __future__ import annotations

import argparse

from pageferry.cli.exit_codes import ExitCode, of_migration
from pageferry.cli.output import print_error, print_json
from pageferry.cli.values import MIGRATION_COMPLETION
from pageferry.cli.watching import find_migration, until_final
from pageferry.control.client import open_client
from pageferry.control.errors import CommandError

SUMMARY = "cancel a migration"

DESCRIPTION = """\
Cancels the running migration of GUEST, or the one with that ID, and waits until it is over. Before
the commit the guest stays on the source, with its memory as it was; after it nothing is left to
cancel, and the command fails."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    reference = parser.add_argument(
        "reference", metavar="GUEST|ID", help="the guest, or the migration's ID or its beginning"
    )
    reference.complete = MIGRATION_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("--json", action="store_true", help="the migration's last state as JSON")
    parser.add_argument("--no-wait", action="store_true", help="ask, and do not wait")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError and DaemonUnreachableError."""
    async with open_client(arguments.socket) as client:
        found = await find_migration(client, arguments.reference)
        if found is None:
            raise CommandError(f"{arguments.reference} is in no migration")
        await client.cancel(migration_id=found.migration_id)
        if arguments.no_wait:
            if arguments.json:
                print_json(dict(found.raw))
            return ExitCode.COMPLETED
        info = await until_final(client, found.migration_id)
    if arguments.json:
        print_json(dict(info.raw))
    if info.status == "cancelled":
        if not arguments.json:
            state = info.error.get("guest-state") or "as before"
            print(f"{info.guest}: cancelled; the guest {state}")
        return ExitCode.COMPLETED
    if not arguments.json:
        print_error(info.error or {"message": f"the migration has {info.status}"})
    return of_migration(info) or ExitCode.FAILED
