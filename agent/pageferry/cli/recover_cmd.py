"""`pageferry recover`: settle what a crash left open, and say before what will be done."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import trio

from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.output import UsageError, print_json
from pageferry.cli.values import MIGRATION_COMPLETION
from pageferry.cli.watching import LEAST_BEGINNING
from pageferry.control.client import ControlClient, open_client
from pageferry.control.errors import CommandError

SUMMARY = "settle migrations that a crash left open"

DESCRIPTION = """\
Settles the migration with that ID, or all that were left open on this host, by what the journals of
both hosts say. First it shows what it found and what follows; on a terminal it then asks. A guest
is resumed here only when the other host provably does not run it and never will. May be run again
at any time, on either host; the daemon itself tries again all the time. Exit status 5 when one is
still open.

--destination-is-gone is for a destination that never comes back, of which nobody can be asked any
more: the guest, which waits on this host, paused, is taken back by your word alone. The
destination's host must be switched off or fenced for good, and its QEMU with it: cut off from the
network is not enough, for the guest would run twice and destroy its disks. On a terminal you type
the guest's name to confirm it; a script says --yes-the-destination-is-fenced. Who said so, and
when, is written to the journal first. It is refused while an agent there answers."""

Told = Sequence[dict[str, Any]]

_ID: Final = re.compile("[0-9a-f]{8,64}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    reference = parser.add_argument(
        "migration_id", metavar="ID", nargs="?", help="only this migration, or that of this guest"
    )
    reference.complete = MIGRATION_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument(
        "--dry-run", action="store_true", help="only look, and say what would be done"
    )
    parser.add_argument("--yes", "-y", action="store_true", help="do it without asking")
    parser.add_argument(
        "--json", action="store_true", help="an array of objects; asks nothing, does it at once"
    )

    parser.add_argument(
        "--destination-is-gone",
        action="store_true",
        help="take the guest back by your word that its destination is gone for good",
    )
    parser.add_argument(
        "--yes-the-destination-is-fenced",
        dest="is_fenced",
        action="store_true",
        help="your word, where there is no terminal to give it at",
    )
    parser.add_argument(
        "--leave-paused",
        action="store_true",
        help="with --destination-is-gone: the guest does not run here yet",
    )


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError and DaemonUnreachableError."""
    if arguments.destination_is_gone and arguments.migration_id is None:
        raise UsageError(
            "--destination-is-gone needs the migration's ID, or its guest",
            advice="see pageferry recover --help",
        )
    async with open_client(arguments.socket) as client:
        wanted = {"migration-id": await _migration_of(client, arguments.migration_id)}
        if wanted["migration-id"] == "":
            if arguments.destination_is_gone:
                raise CommandError(f"no migration of {arguments.migration_id} is open")
            _print_nothing(as_json=arguments.json)
            return ExitCode.COMPLETED
        if arguments.destination_is_gone:
            return await _reclaim(client, wanted, arguments)
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


async def _migration_of(client: ControlClient, reference: str | None) -> str | None:
    """The open migration of the guest of that name, or the one whose ID begins so; any other
    reference is taken for an ID. Empty for a guest of which nothing is open. Raises CommandError
    where it can be neither."""
    if reference is None:
        return None
    told = await client.execute("migrate-recover", {"migration-id": None, "dry-run": True})
    of_guest = {each["migration-id"] for each in told if each.get("guest") == reference}
    if len(of_guest) == 1:
        return str(of_guest.pop())
    begin_so = {each["migration-id"] for each in told if each["migration-id"].startswith(reference)}
    if len(reference) >= LEAST_BEGINNING and len(begin_so) == 1:
        return str(begin_so.pop())
    if not of_guest and reference in {guest.name for guest in await client.query_guests()}:
        return ""
    if _ID.fullmatch(reference) is None:
        raise CommandError(
            f"{reference} is neither a guest of this host nor the ID of a migration"
            if not of_guest
            else f"{len(of_guest)} migrations of {reference} are open: give the ID of one"
        )
    return reference


async def _reclaim(
    client: ControlClient, wanted: dict[str, Any], arguments: argparse.Namespace
) -> ExitCode:
    """Take a guest back whose destination is gone."""
    plan = await client.execute("migrate-recover", {**wanted, "dry-run": True})
    source = next((each for each in plan if each.get("role") == "source"), None)
    guest = (source or {}).get("guest", "")
    word = {"destination-is-gone": guest}
    if arguments.leave_paused:
        word["leave-paused"] = True
    plan = await client.execute("migrate-recover", {**wanted, **word, "dry-run": True})
    if not arguments.json:
        _print_plan(plan)
    if arguments.dry_run or not any(each.get("plan") for each in plan):
        if arguments.json:
            print_json(plan)
        return _exit_code(plan)
    if not (arguments.is_fenced or await _word_given(guest)):
        print("nothing was done", file=sys.stderr)
        return ExitCode.REFUSED
    told = await client.execute("migrate-recover", {**wanted, **word})
    if arguments.json:
        print_json(told)
    else:
        _print_done(told)
    return _exit_code(told)


async def _word_given(guest: str) -> bool:
    """Whether whoever sits at the terminal types the guest's name. A script has to say it by its
    option."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print(
            "recover: without a terminal say --yes-the-destination-is-fenced, if that is true",
            file=sys.stderr,
        )
        return False
    question = f"if the destination is switched off or fenced for good, type {guest}: "
    answer = await trio.to_thread.run_sync(input, question, abandon_on_cancel=True)
    return answer.strip() == guest


def _print_nothing(*, as_json: bool) -> None:
    if as_json:
        print_json([])
    else:
        print("nothing was left open")


def _print_plan(told: Told) -> None:
    if not told:
        _print_nothing(as_json=False)
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
