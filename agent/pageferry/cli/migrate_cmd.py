"""`pageferry migrate`: start a migration and follow it to its end."""

from __future__ import annotations

import argparse
import signal
from typing import Any

import trio

from pageferry.cli.attached import Attached, follow
from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.presenting import presenter_for
from pageferry.cli.values import (
    GUEST_NAME_COMPLETION,
    add_set_option,
    number_of,
    parameters_from,
    size_of,
)
from pageferry.control.client import open_client
from pageferry.model.parameters import COMPRESSION_MODES, NO_CONVERGENCE_CHOICES

SUMMARY = "carry a running guest to another host"

DESCRIPTION = """\
Carries the running guest GUEST to the agent on HOST and follows it to the end. GUEST is a name
that the daemon knows, or the path of a QMP socket on this host. On a terminal the progress is shown
live; otherwise, and with --json, there is one JSON object per line, the last one with
"event":"finished".

Ctrl-C on a terminal asks whether to cancel, to detach, or to go on; pressed again at the question
it cancels. Without a terminal SIGINT and SIGTERM cancel the migration and wait until it is. Once it
has been committed nothing can be cancelled. A hang-up detaches: the migration goes on.

When the daemon is restarted it is waited for, ten seconds long: the migration has not noticed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    guest = parser.add_argument("guest", metavar="GUEST", help="its name, or its QMP socket")
    guest.complete = GUEST_NAME_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("uri", metavar="HOST[:PORT]", help="where the other agent listens")
    parser.add_argument("--destination-guest", metavar="NAME", help="the guest's name over there")
    parser.add_argument(
        "--verify", action="store_true", default=None, help="compare all memory before it may run"
    )
    parser.add_argument("--json", action="store_true", help="JSON lines, also on a terminal")
    parser.add_argument("--downtime-limit", type=int, metavar="MS", help="longest wanted downtime")
    parser.add_argument("--window", type=size_of, metavar="SIZE", help="page-in window, as in 4M")
    parser.add_argument("--channels", type=int, metavar="N", help="data connections")
    parser.add_argument(
        "--compression", choices=COMPRESSION_MODES, help="pack pages by zstd (default: off)"
    )
    parser.add_argument("--compression-level", type=int, metavar="N", help="-7 to 19 (default: 1)")
    parser.add_argument("--max-rounds", type=int, metavar="N", help="rounds at most")
    parser.add_argument("--timeout", type=number_of, metavar="S", help="give up after so long")
    parser.add_argument(
        "--max-bandwidth", type=size_of, metavar="SIZE", help="send no more than that per second"
    )
    parser.add_argument(
        "--max-swap-bandwidth",
        type=size_of,
        metavar="SIZE",
        help="page in no more than that per second",
    )
    parser.add_argument(
        "--auto-converge",
        action="store_true",
        default=None,
        help="throttle a guest that writes faster than can be sent",
    )
    parser.add_argument(
        "--max-cpu-throttle",
        type=int,
        metavar="PERCENT",
        help="never throttle it further than that",
    )
    parser.add_argument(
        "--on-no-convergence",
        choices=NO_CONVERGENCE_CHOICES,
        help="what to do when all rounds are used up (give-up)",
    )
    add_set_option(parser)
    parser.add_argument("--detach", action="store_true", help="start it and return")


def parameters_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Migration parameters as the daemon takes them, which checks their values. Raises UsageError;
    options of their own count before --set."""
    given = {
        "verify": arguments.verify,
        "downtime-limit": arguments.downtime_limit,
        "page-in-window": arguments.window,
        "channels": arguments.channels,
        "max-rounds": arguments.max_rounds,
        "timeout": arguments.timeout,
        "compression": arguments.compression,
        "compression-level": arguments.compression_level,
        "max-bandwidth": arguments.max_bandwidth,
        "max-swap-bandwidth": arguments.max_swap_bandwidth,
        "auto-converge": arguments.auto_converge,
        "max-cpu-throttle": arguments.max_cpu_throttle,
        "on-no-convergence": arguments.on_no_convergence,
    }
    options = {key: value for key, value in given.items() if value is not None}
    return {**parameters_from(arguments.set), **options}


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError, DaemonUnreachableError and UsageError."""
    presenter = presenter_for(as_json=arguments.json)
    # Signals are ours before there is anything to interrupt: none may fall into the gap.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with open_client(arguments.socket) as client:
            migration_id = await client.migrate(
                arguments.guest,
                arguments.uri,
                destination_guest=arguments.destination_guest,
                parameters=parameters_of(arguments),
            )
            presenter.started(migration_id, arguments.guest, arguments.uri)
            if arguments.detach:
                presenter.detached(migration_id)
                return ExitCode.COMPLETED
            try:
                attached = Attached(migration_id, presenter)
                return await follow(arguments.socket, client, attached, signals)
            finally:
                presenter.close()
