"""`pageferry estimate`: what a migration would cost, without migrating."""

from __future__ import annotations

import argparse

from rich.table import Table

from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.output import console, duration, print_json, size
from pageferry.cli.values import (
    GUEST_NAME_COMPLETION,
    add_set_option,
    number_of,
    parameters_from,
    size_of,
)
from pageferry.control.client import open_client
from pageferry.control.info import Estimate

SUMMARY = "tell what a migration would cost, without migrating"

DESCRIPTION = """\
Looks where the guest's memory is, tracks its writes for a moment, and reckons what a migration
would send, page in and take. Nothing is sent or paged in; the tracking costs the guest a minor
fault for the first write to a page in each tenth of a second. Network and swap are reckoned with at
the rates given, else at rates that are assumed, and the answer says so. A guest that could not be
migrated is refused with the same reasons, exit status 3."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    guest = parser.add_argument("guest", metavar="GUEST", help="its name, or its QMP socket")
    guest.complete = GUEST_NAME_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument(
        "--sample", type=number_of, metavar="S", help="track writes for so long (2)"
    )
    parser.add_argument(
        "--bandwidth", type=size_of, metavar="SIZE", help="of the network per second, as in 1200M"
    )
    parser.add_argument("--swap-bandwidth", type=size_of, metavar="SIZE", help="of swap per second")
    parser.add_argument("--downtime-limit", type=int, metavar="MS", help="longest wanted downtime")
    add_set_option(parser)
    parser.add_argument("--json", action="store_true", help="an object")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError and DaemonUnreachableError."""
    parameters = parameters_from(arguments.set)
    if arguments.downtime_limit is not None:
        parameters["downtime-limit"] = arguments.downtime_limit
    async with open_client(arguments.socket) as client:
        found = await client.estimate(
            arguments.guest,
            sample_s=arguments.sample,
            bandwidth=arguments.bandwidth,
            swap_bandwidth=arguments.swap_bandwidth,
            parameters=parameters,
        )
    if arguments.json:
        print_json(dict(found.raw))
    else:
        _show(arguments.guest, found)
    return ExitCode.COMPLETED


def _show(guest: str, found: Estimate) -> None:
    table = Table(
        title=f"A migration of {guest}", title_justify="left", box=None, show_header=False
    )
    table.add_row("to send, at most", size(found.transfer_bytes))
    table.add_row("to page in, and out again", size(found.page_in_bytes))
    table.add_row("never allocated, stays so", size(found.hole_bytes))
    table.add_row("time", duration(found.total_time_ms))
    table.add_row("rounds", str(found.rounds))
    table.add_row("writes", f"{size(found.dirty_bytes_per_s)}/s, over {found.sample_s:.1f} s")
    table.add_row("downtime to expect", duration(found.expected_downtime_ms))
    table.add_row("network", _rate(found.bandwidth, assumed=found.bandwidth_assumed))
    table.add_row("swap", _rate(found.swap_bandwidth, assumed=found.swap_bandwidth_assumed))
    shown = console(120)
    shown.print(table)
    if not found.converges:
        shown.print(
            "It would not converge: the guest writes too fast for its downtime-limit. Raise that,"
            " or migrate when the guest is less busy.",
            style="red",
        )


def _rate(rate_bytes: int, *, assumed: bool) -> str:
    return f"{size(rate_bytes)}/s" + (" (assumed; measure yours and give it)" if assumed else "")
