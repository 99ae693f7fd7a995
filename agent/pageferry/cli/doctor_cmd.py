"""`pageferry doctor`: what this host offers to migrations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.output import print_json
from pageferry.control.client import open_client

SUMMARY = "check what this host offers to migrations"

DESCRIPTION = """\
Tries, as the daemon, each thing that a migration needs of the kernel, and says what is supported,
absent or denied, and why. Exit status 1 when migrations cannot work on this host."""

RESIDENCY_WAYS: Final = frozenset({"pagemap", "cachestat", "mincore"})
"""Probes of which one is enough."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    parser.add_argument("--json", action="store_true", help="an array of objects")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError and DaemonUnreachableError."""
    async with open_client(arguments.socket) as client:
        results: list[dict[str, Any]] = await client.execute("query-doctor")
    if arguments.json:
        print_json(results)
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("FEATURE", "STATE", "REASON"):
            table.add_column(heading)
        for result in results:
            table.add_row(result["name"], result["degree"], result.get("reason", ""))
        console = Console() if sys.stdout.isatty() else Console(width=160)
        console.print(table)
    return ExitCode.COMPLETED if is_fit(results) else ExitCode.FAILED


def is_fit(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether migrations can work here: all probes, but of the residency ways any one."""
    supported = {each["name"] for each in results if each["degree"] == "supported"}
    wanted = {each["name"] for each in results} - RESIDENCY_WAYS
    has_ways = any(each["name"] in RESIDENCY_WAYS for each in results)
    return wanted <= supported and (not has_ways or bool(supported & RESIDENCY_WAYS))
