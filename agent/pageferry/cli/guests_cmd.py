"""`pageferry guests`: the guests of this host."""

from __future__ import annotations

import argparse

from rich.table import Table

from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.output import console, print_json
from pageferry.control.client import open_client

SUMMARY = "show the guests of this host"

DESCRIPTION = """\
Shows the guests that the daemon knows by name: those of its configuration, and those whose QMP
sockets it finds where guest-sockets says."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    parser.add_argument("--json", action="store_true", help="an array of objects")
    parser.add_argument("--names", action="store_true", help="only the names, a line each")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises DaemonUnreachableError."""
    async with open_client(arguments.socket) as client:
        guests = await client.query_guests()
    if arguments.names:
        for guest in guests:
            print(guest.name)
        return ExitCode.COMPLETED
    if arguments.json:
        print_json([dict(guest.raw) for guest in guests])
        return ExitCode.COMPLETED
    if not guests:
        print("no guests; add them to [guests] in the daemon's configuration, or set guest-sockets")
        return ExitCode.COMPLETED
    table = Table(box=None, pad_edge=False)
    for heading in ("GUEST", "SOCKET", "QMP", "LAST MIGRATION"):
        table.add_column(heading, no_wrap=True)
    for guest in guests:
        table.add_row(guest.name, "there" if guest.present else "missing", guest.qmp, guest.status)
    console().print(table)
    return ExitCode.COMPLETED
