"""`pageferry set`: parameters of a running migration, or of those that will start."""

from __future__ import annotations

import argparse
from typing import Any, Final

from rich.table import Table

from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.output import UsageError, console, print_json, size
from pageferry.cli.values import MIGRATION_COMPLETION, PARAMETER_COMPLETION, parameters_from
from pageferry.cli.watching import find_migration
from pageferry.control.client import open_client
from pageferry.control.errors import CommandError
from pageferry.control.schema import Builtin, Member
from pageferry.control.types import PARAMETERS

SUMMARY = "set parameters of a running migration"

DESCRIPTION = """\
Sets parameters of the running migration of GUEST, or of the one with that ID; they are in effect
when the command returns. With --defaults they are those of migrations that start from now on, until
the daemon starts anew or reads its configuration again. Without KEY=VALUE the parameters are shown.

While a migration runs, channels and residency-way cannot be changed any more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    reference = parser.add_argument(
        "reference", metavar="GUEST|ID", nargs="?", help="left out with --defaults"
    )
    reference.complete = MIGRATION_COMPLETION  # type: ignore[attr-defined]
    names = ", ".join(member.name for member in PARAMETERS)
    assignments = parser.add_argument(
        "assignments", metavar="KEY=VALUE", nargs="*", help=f"KEY: {names}"
    )
    assignments.complete = PARAMETER_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("--defaults", action="store_true", help="of migrations from now on")
    parser.add_argument("--json", action="store_true", help="the parameters, then, as an object")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError, DaemonUnreachableError and UsageError."""
    reference, assignments = arguments.reference, list(arguments.assignments)
    if arguments.defaults and reference is not None:
        assignments, reference = [reference, *assignments], None
    if not arguments.defaults and reference is None:
        advice = "see pageferry set --help"
        raise UsageError("say which migration: GUEST or ID, or --defaults", advice=advice)
    values = parameters_from(assignments)
    async with open_client(arguments.socket) as client:
        which = {}
        if reference is not None:
            found = await find_migration(client, reference)
            if found is None:
                raise CommandError(f"{reference} is in no migration")
            which = {"migration-id": found.migration_id}
        if values:
            await client.execute("migrate-set-parameters", {**which, **values})
        now = await client.execute("query-migrate-parameters", which)
    if arguments.json:
        print_json(now)
        return ExitCode.COMPLETED
    table = Table(box=None, pad_edge=False, show_header=False)
    for member in PARAMETERS:
        table.add_row(member.name, words(member, now.get(member.name)), member.doc)
    console().print(table)
    return ExitCode.COMPLETED


_LEFT_OUT: Final = {
    "page-in-window": "by the headroom",
    "timeout": "never",
    "residency-way": "the best",
}


def words(member: Member, value: Any) -> str:
    """A parameter as a person would write it; None where it is left out."""
    if value is None:
        return _LEFT_OUT.get(member.name, "")
    if member.type is Builtin.BOOL:
        return "on" if value else "off"
    if member.type is Builtin.SIZE:
        return size(value) if value else "no limit"
    return str(value)
