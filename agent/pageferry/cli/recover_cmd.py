"""`pageferry recover`: settle what a crash left open, and say before what will be done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import trio

from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.output import print_json
from pageferry.control.client import open_client

SUMMARY = "settle migrations that a crash left open"

DESCRIPTION = """\
Settles the migration with that ID, or all that were left open on this host, by what the journals of
both hosts say. First it shows what it found and what follows; on a terminal it then asks. A guest
is resumed here only when the other host provably does not run it and never will. May be run again
at any time, on either host; the daemon itself tries again all the time. Exit status 5 when one is
still open."""

Told = Sequence[dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    parser.add_argument("migration_id", metavar="ID", nargs="?", help="only this migration")
    parser.add_argument(
        "--dry-run", action="store_true", help="only look, and say what would be done"
    )
    parser.add_argument("--yes", "-y", action="store_true", help="do it without asking")
    parser.add_argument(
        "--json", action="store_true", help="an array of objects; asks nothing, does it at once"
    )


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError and DaemonUnreachableError."""
    wanted = {"migration-id": arguments.migration_id}
    async with open_client(arguments.socket) as client:
        if arguments.json:
            told = await client.execute("migrate-recover", {**wanted, "dry-run": arguments.dry_run})
            print_json(told)
            return _exit_code(told)
        plan = await client.execute("migrate-recover", {**wanted, "dry-run": True})
        _print_plan(plan)
        if arguments.dry_run or not any(each.get("plan") for each in plan):
            return _exit_code(plan)
        if not (arguments.yes or await _agreed()):
            print("nothing was done")
            return _exit_code(plan)
        told = await client.execute("migrate-recover", wanted)
    _print_done(told)
    return _exit_code(told)


def _print_plan(told: Told) -> None:
    if not told:
        print("nothing was left open")
    for each in told:
        print(f"{_name(each)}:")
        print(f"  found: {each.get('found') or each.get('message', '')}")
        if each.get("plan"):
            print(f"  to do: {each['plan']}")
        elif not each.get("settled"):
            print("  to do: nothing yet; it stays as it is")


def _print_done(told: Told) -> None:
    for each in told:
        state = "settled" if each.get("settled") else "still open"
        print(f"{_name(each)}: {state}: {each.get('message', '')}")


def _name(each: dict[str, Any]) -> str:
    guest = each.get("guest") or "-"
    return f"{each.get('migration-id')} {guest} {each.get('role', '')}".rstrip()


async def _agreed() -> bool:
    """Ask whoever sits at the terminal; a script that calls this has agreed."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    answer = await trio.to_thread.run_sync(input, "go on? [y/N] ", abandon_on_cancel=True)
    return answer.strip().lower() in ("y", "yes")


def _exit_code(told: Told) -> ExitCode:
    settled = all(each.get("settled") for each in told)
    return ExitCode.COMPLETED if settled else ExitCode.UNKNOWN
