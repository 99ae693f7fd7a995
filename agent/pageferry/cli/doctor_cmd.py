"""`pageferry doctor`: what this host, its guests and a destination offer to migrations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from rich.table import Table
from rich.text import Text

from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.output import console, print_json
from pageferry.cli.values import GUEST_NAME_COMPLETION
from pageferry.control.client import open_client
from pageferry.control.info import Check

SUMMARY = "check what this host, its guests and a destination offer to migrations"

DESCRIPTION = """\
Tries, as the daemon, each thing that a migration needs: of the kernel, of this host, of its guests
(all, or GUEST), and, with --to, of a destination: whether its agent answers, and whether GUEST
would find memory, swap and a waiting QEMU there. Each is

  ok        as it should be
  degraded  migrations work, but not as well as they could
  blocked   migrations cannot work
  unknown   it cannot be told from here

and what is not ok comes with its fix. Exit status 1 when something is blocked."""

_STYLES: Final = {"ok": "green", "degraded": "yellow", "blocked": "bold red", "unknown": "cyan"}

_TITLES: Final = {
    "kernel": "kernel",
    "host": "this host",
    "tls": "encryption",
    "guest": "guest",
    "destination": "destination",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    guest = parser.add_argument("guest", metavar="GUEST", nargs="?", help="only this guest")
    guest.complete = GUEST_NAME_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("--to", metavar="HOST[:PORT]", help="also look at this destination")
    parser.add_argument(
        "--destination-guest", metavar="NAME", help="with --to: the guest's name over there"
    )
    parser.add_argument("--json", action="store_true", help="an array of objects")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError and DaemonUnreachableError."""
    async with open_client(arguments.socket) as client:
        checks = await client.doctor(
            guest=arguments.guest,
            uri=arguments.to,
            destination_guest=arguments.destination_guest,
        )
    if arguments.json:
        print_json([dict(check.raw) for check in checks])
    else:
        _show(checks)
    return ExitCode.FAILED if worst(checks) == "blocked" else ExitCode.COMPLETED


def worst(checks: Sequence[Check]) -> str:
    """The verdict on all together; what is unknown counts for nothing."""
    verdicts = {check.verdict for check in checks}
    return next((verdict for verdict in ("blocked", "degraded") if verdict in verdicts), "ok")


def _show(checks: Sequence[Check]) -> None:
    shown = console()
    for (section, guest), group in groupby(checks, lambda check: (check.section, check.guest)):
        title = _TITLES.get(section, section)
        shown.print(Text(f"{title} {guest}" if guest else title, style="bold"))
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
        table.add_column(min_width=1)
        for check in group:
            verdict = Text(check.verdict, style=_STYLES.get(check.verdict, ""))
            told = Text(check.found)
            if check.fix and check.verdict != "ok":
                told.append(f"\nwhat to do: {check.fix}", style="italic")
            table.add_row(" ", verdict, check.name, told)
        shown.print(table)
    overall = worst(checks)
    shown.print(Text.assemble("\nall in all: ", (overall, _STYLES[overall])))
