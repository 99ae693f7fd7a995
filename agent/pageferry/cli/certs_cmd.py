"""`pageferry certs`: a small authority and certificates of hosts, for a start."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Final

from pageferry.certificates.authority import (
    AUTHORITY_DAYS,
    AUTHORITY_KEY,
    HOST_DAYS,
    HostNames,
    create_authority,
    issue_host,
    load_authority,
)
from pageferry.certificates.files import DEFAULT_DIRECTORY
from pageferry.certificates.inspection import inspect_directory
from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.output import print_json

SUMMARY = "make certificates of hosts, and look at them"

DEFAULT_AUTHORITY: Final = Path("/etc/pageferry/ca")

DESCRIPTION = f"""\
Connections between hosts use TLS, and both sides show a certificate. These verbs make a small
authority for a start; certificates of any other authority do as well, in files of the same names.

  pageferry certs init           makes the authority, once, on one host
  pageferry certs host NAME      issues the certificates of a host, on the same host
  pageferry certs show           tells whose this host's certificates are, and until when

NAME is the name or address that other hosts migrate to. The authority's key ({AUTHORITY_KEY}) makes
whoever has it a host: keep it on one host, or offline. Nothing is overwritten without --force."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    init = actions.add_parser("init", help="make the authority")
    init.add_argument("--name", default="pageferry authority", help="what it is called")
    init.add_argument("--days", type=_days, default=AUTHORITY_DAYS, help="how long it is valid")

    host = actions.add_parser("host", help="issue the certificates of a host")
    host.add_argument("name", metavar="NAME", help="DNS name or IP address of the host")
    host.add_argument(
        "--dns", action="append", default=[], metavar="NAME", help="another name of it"
    )
    host.add_argument(
        "--ip", action="append", default=[], metavar="ADDRESS", help="an address of it"
    )
    host.add_argument("--days", type=_days, default=HOST_DAYS, help="how long they are valid")
    host.add_argument(
        "--output", type=Path, metavar="DIR", help="where to (default: a directory of that NAME)"
    )
    for action in (init, host):
        action.add_argument("--force", action="store_true", help="overwrite what is there")
        action.add_argument("--json", action="store_true", help="the files that were made")
        action.add_argument(
            "--ca",
            type=Path,
            metavar="DIR",
            default=DEFAULT_AUTHORITY,
            help=f"where the authority is (default: {DEFAULT_AUTHORITY})",
        )

    show = actions.add_parser("show", help="whose they are, and until when")
    show.add_argument(
        "directory",
        type=Path,
        nargs="?",
        default=DEFAULT_DIRECTORY,
        metavar="DIR",
        help=f"where (default: {DEFAULT_DIRECTORY})",
    )
    show.add_argument("--json", action="store_true", help="an array of objects")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises RefusedError."""
    now = datetime.datetime.now(datetime.UTC)
    if arguments.action == "init":
        return _init(arguments, now)
    if arguments.action == "host":
        return _host(arguments, now)
    return _show(arguments, now)


def _init(arguments: argparse.Namespace, now: datetime.datetime) -> ExitCode:
    files = create_authority(
        arguments.ca, arguments.name, now, days=arguments.days, force=arguments.force
    )
    if arguments.json:
        print_json({"files": [str(path) for path in files]})
        return ExitCode.COMPLETED
    _print_files(files)
    print("\nNow issue the certificates of each host, here:\n\n  pageferry certs host NAME")
    return ExitCode.COMPLETED


def _host(arguments: argparse.Namespace, now: datetime.datetime) -> ExitCode:
    host = HostNames.of(arguments.name, arguments.dns, arguments.ip)
    directory = arguments.output or Path.cwd() / host.name
    files = issue_host(
        load_authority(arguments.ca),
        host,
        directory,
        now,
        days=arguments.days,
        force=arguments.force,
    )
    if arguments.json:
        names = {"dns": host.dns, "ip": host.addresses, "days": arguments.days}
        print_json({"files": [str(path) for path in files], **names})
        return ExitCode.COMPLETED
    _print_files(files)
    print(f"\nfor {', '.join((*host.dns, *host.addresses))}, valid for {arguments.days} days")
    print(
        f"\nCopy them to that host, and keep no copy here:\n\n"
        f"  ssh root@{host.name} install -d -m 0700 {DEFAULT_DIRECTORY}\n"
        f"  scp -p {directory}/*.pem root@{host.name}:{DEFAULT_DIRECTORY}/\n"
        f"  rm -r {directory}\n\n"
        f"A pageferryd that runs there uses them from the next connection on."
    )
    return ExitCode.COMPLETED


def _show(arguments: argparse.Namespace, now: datetime.datetime) -> ExitCode:
    reports = inspect_directory(arguments.directory, now)
    if arguments.json:
        print_json([each.as_dict() for each in reports])
    else:
        for each in reports:
            print(f"{each.path}: {each.degree}: {each.reason}")
            if each.advice:
                print(f"  what to do: {each.advice}")
    bad = any(each.degree == "bad" for each in reports)
    return ExitCode.FAILED if bad else ExitCode.COMPLETED


def _print_files(files: list[Path]) -> None:
    for path in files:
        print(f"{path}{'  (secret)' if path.name.endswith('-key.pem') else ''}")


def _days(text: str) -> int:
    days = int(text)
    if not 0 < days <= 36500:
        raise ValueError
    return days


_days.__name__ = "number of days"
