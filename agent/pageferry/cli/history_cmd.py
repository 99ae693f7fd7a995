"""`pageferry history`: migrations that are over, also from before the daemon started."""

from __future__ import annotations

import argparse
import time

from rich.table import Table

from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.output import console, duration, print_json, size
from pageferry.cli.values import GUEST_NAME_COMPLETION
from pageferry.control.client import open_client
from pageferry.control.info import HistoryEntry

SUMMARY = "show past migrations"

DESCRIPTION = """\
Shows migrations that are over, newest first, of this host or of GUEST. The daemon remembers the
last 1000, across restarts. Of one that ended while no daemon ran only the journal tells: the time,
how it ended and why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    guest = parser.add_argument("guest", metavar="GUEST", nargs="?", help="only this guest's")
    guest.complete = GUEST_NAME_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("--limit", type=int, metavar="N", default=20, help="at most so many (20)")
    parser.add_argument("--json", action="store_true", help="an array of objects")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError and DaemonUnreachableError."""
    async with open_client(arguments.socket) as client:
        records = await client.history(guest=arguments.guest, limit=arguments.limit)
    if arguments.json:
        print_json([dict(record.raw) for record in records])
        return ExitCode.COMPLETED
    if not records:
        print("no migrations")
        return ExitCode.COMPLETED
    table = Table(box=None, pad_edge=False)
    for heading in ("ENDED", "MIGRATION", "GUEST", "ROLE", "STATUS", "TIME", "DOWNTIME", "SENT"):
        table.add_column(heading, no_wrap=True)
    table.add_column("REASON")
    for record in records:
        table.add_row(*_row(record))
    console(200).print(table)
    return ExitCode.COMPLETED


def _row(record: HistoryEntry) -> list[str]:
    info = record.info
    downtime = "" if info is None or info.downtime_ms is None else duration(info.downtime_ms)
    return [
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.ended_s)),
        record.migration_id[:12],
        record.guest,
        record.role,
        record.status,
        duration((record.ended_s - record.started_s) * 1000),
        downtime,
        "" if info is None else size(info.transferred_bytes),
        record.reason,
    ]
