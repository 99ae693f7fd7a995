"""`pageferry status`: migrations, running and finished."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.table import Table

from pageferry.cli.display import PhaseProgress, render
from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.output import console, duration, print_error, print_json, size
from pageferry.cli.values import MIGRATION_COMPLETION
from pageferry.cli.watching import find_migration
from pageferry.control.client import open_client
from pageferry.control.errors import CommandError
from pageferry.control.info import MigrationInfo

SUMMARY = "show migrations"

DESCRIPTION = """\
Shows all migrations since the daemon started, or the last one of GUEST, or the one with that ID,
however long ago. `pageferry history` has all that are over.
The exit status tells whether the daemon answered, not how a migration went."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    reference = parser.add_argument(
        "reference", metavar="GUEST|ID", nargs="?", help="one migration; all without it"
    )
    reference.complete = MIGRATION_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("--json", action="store_true", help="an object, or an array of all")
    parser.add_argument("--names", action="store_true", help="only IDs and guests, a line each")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError and DaemonUnreachableError."""
    async with open_client(arguments.socket) as client:
        if arguments.names:
            known = await client.query_migrations()
            print("\n".join({name for info in known for name in (info.migration_id, info.guest)}))
            return ExitCode.COMPLETED
        if arguments.reference is None:
            _print_all(await client.query_migrations(), as_json=arguments.json)
            return ExitCode.COMPLETED
        info = await find_migration(client, arguments.reference)
    if info is None:
        raise CommandError(f"no migration of {arguments.reference} is known")
    _print_one(info, as_json=arguments.json)
    return ExitCode.COMPLETED


def _print_all(migrations: Sequence[MigrationInfo], *, as_json: bool) -> None:
    if as_json:
        print_json([dict(info.raw) for info in migrations])
        return
    if not migrations:
        print("no migrations")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("MIGRATION", "GUEST", "ROLE", "STATUS", "PHASE", "SENT", "TIME", "DOWNTIME"):
        table.add_column(heading, no_wrap=True)
    for info in migrations:
        downtime = "" if info.downtime_ms is None else duration(info.downtime_ms)
        table.add_row(
            info.migration_id[:12],
            info.guest,
            info.role,
            info.status,
            info.phase,
            size(info.transferred_bytes),
            duration(info.total_time_ms),
            downtime,
        )
    console().print(table)


def _print_one(info: MigrationInfo, *, as_json: bool) -> None:
    if as_json:
        print_json(dict(info.raw))
        return
    progress = PhaseProgress()
    progress.update(info)
    shown = console()
    shown.print(f"migration {info.migration_id}, {info.role}")
    shown.print(render(info, progress))
    if info.error:
        print_error(info.error)
