"""`pageferry recover`: settle what a crash left open."""

from __future__ import annotations

import argparse

from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.output import print_json
from pageferry.control.client import open_client

SUMMARY = "settle migrations that a crash left open"

DESCRIPTION = """\
Settles the migration with that ID, or all that were left open on this host, by what the journals of
both hosts say. A guest is resumed here only when the other host provably does not run it and never
will. May be run again at any time, on either host. Exit status 5 when one is still open."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    parser.add_argument("migration_id", metavar="ID", nargs="?")
    parser.add_argument("--json", action="store_true", help="an array of objects")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError and DaemonUnreachableError."""
    async with open_client(arguments.socket) as client:
        told = await client.execute("migrate-recover", {"migration-id": arguments.migration_id})
    if arguments.json:
        print_json(told)
    elif not told:
        print("nothing was left open")
    else:
        for each in told:
            state = "settled" if each.get("settled") else "still open"
            guest = each.get("guest") or "-"
            print(f"{each.get('migration-id')} {guest} {each.get('role', '')}: {state}:", end=" ")
            print(each.get("message", ""))
    settled = all(each.get("settled") for each in told)
    return ExitCode.COMPLETED if settled else ExitCode.UNKNOWN
