"""`pageferry demo`: a migration of a guest of its own, on this host."""

from __future__ import annotations

import argparse
import os
import sys

from pageferry.cli.exit_codes import ExitCode

SUMMARY = "carry a guest of its own from one QEMU to another on this host"

DESCRIPTION = """\
Starts a guest whose cold memory lies in swap, two daemons of its own, and migrates it between two
QEMUs on this host; shows what became of its memory, the swap traffic, the downtime and the guest's
own verification of every page. Needs root; takes less than two minutes; leaves nothing behind. The
daemon of this host has no part in it."""

DEMO_MODULE = "pageferry.testing.lab.demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    parser.add_argument("--json", metavar="FILE", help="also write the result there, as JSON")
    parser.add_argument(
        "--small",
        action="store_true",
        help="with a guest of 96 MiB in place of 1 GiB, for small and slow hosts",
    )
    parser.add_argument(
        "--qemu",
        choices=("7.2", "10.0"),
        help="which QEMU, of Debian's (default: the installed one)",
    )


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Become the demo. Does not return, unless it cannot be started."""
    options = []
    if arguments.json:
        options += ["--json", arguments.json]
    if arguments.qemu:
        options += ["--qemu", arguments.qemu]
    if arguments.small:
        options.append("--small")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", DEMO_MODULE, *options])
