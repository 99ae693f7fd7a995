"""Everything that query-doctor answers: this host, its guests, a destination, TLS."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import Final

import trio

from pageferry.certificates.inspection import inspect_directory
from pageferry.daemon.config import Config
from pageferry.daemon.guests import Guest
from pageferry.daemon.hooks import Hooks
from pageferry.daemon.supervisor import Supervisor
from pageferry.model.errors import RefusedError
from pageferry.model.launch import Launch
from pageferry.model.verdict import Check, Verdict
from pageferry.net.address import Address

CONNECT_S: Final = 5.0

GUEST_S: Final = 20.0
"""How long a look at one guest may take: QEMU's main loop may be stuck."""


async def examine(
    config: Config,
    supervisor: Supervisor,
    hooks: Hooks,
    guest: Guest | None,
    destination: Address | None,
) -> list[Check]:
    """All checks, section by section. With *guest* only that one is looked at beside the host."""
    checks = list(await hooks.check_host())
    checks += hooks.check_tls(config)
    for each in [guest] if guest is not None else supervisor.guests.all():
        checks += await _check_guest(supervisor, hooks, each)
    if destination is not None:
        checks += await check_destination(destination, checks)
    return checks


async def _check_guest(supervisor: Supervisor, hooks: Hooks, guest: Guest) -> Sequence[Check]:
    launch = supervisor.config.launches.get(guest.name)
    if not guest.qmp.is_socket() and launch is not None:
        return [check_launch(guest, launch)]
    if not guest.qmp.is_socket():
        found = f"{guest.qmp} is not there: the guest does not run"
        return [
            Check("guest", "qmp", Verdict.UNKNOWN, found, "start it to look at it", guest.label)
        ]
    try:
        with supervisor.reserved(guest, "the doctor is looking at it"):
            with trio.move_on_after(GUEST_S):
                return await hooks.check_guest(guest.label, guest.qmp)
            found = f"QEMU did not answer within {GUEST_S:.0f} s"
            fix = "see whether its storage hangs, and whether another program holds its QMP socket"
            return [Check("guest", "qmp", Verdict.BLOCKED, found, fix, guest.label)]
    except RefusedError as error:
        return [Check("guest", "qmp", Verdict.UNKNOWN, error.message, error.advice, guest.label)]


def check_launch(guest: Guest, launch: Launch) -> Check:
    """A guest that does not run here, and whose QEMU would be started for it."""
    program = launch.command[0]
    if os.access(program, os.X_OK):
        found = f"does not run here; {program} is started when it comes"
        return Check("guest", "launch", Verdict.OK, found, "", guest.label)
    found = f"{program}, which would be started when it comes, cannot be run"
    fix = f"install it, or correct launch in [guests.{guest.name}]"
    return Check("guest", "launch", Verdict.BLOCKED, found, fix, guest.label)


async def check_destination(destination: Address, checks: Sequence[Check]) -> list[Check]:
    """What can be told of another host from here. The agents' protocol has no question for more."""
    try:
        with trio.fail_after(CONNECT_S):
            stream = await trio.open_tcp_stream(destination.host, destination.port)
        await stream.aclose()
    except (OSError, trio.TooSlowError) as error:
        found = f"{destination} cannot be reached: {str(error) or 'no answer'}"
        fix = "start pageferryd there, let it listen on that address, and open the port"
        return [Check("destination", "agent", Verdict.BLOCKED, found, fix)]
    needs = "; ".join(
        f"{check.guest} has {check.found}"
        for check in checks
        if check.name == "ram" and check.guest
    )
    return [
        Check("destination", "agent", Verdict.OK, f"{destination} accepts connections"),
        Check(
            "destination",
            "memory and swap",
            Verdict.UNKNOWN,
            "not told by the other agent" + (f"; {needs}" if needs else ""),
            "run pageferry doctor there, and hold its memory, swap and tmpfs against the guest",
        ),
    ]


def check_tls(config: Config) -> list[Check]:
    """Whether guests' memory is safe on its way: what is encrypted, and with what certificates."""
    if config.plaintext:
        return [
            Check(
                "tls",
                "encryption",
                Verdict.DEGRADED,
                "plaintext = true: the memory of guests crosses the network unencrypted",
                "take plaintext out of [daemon], and see pageferry certs",
            )
        ]
    needed = config.encryption.is_needed(config.listen.host)
    what = "all connections" if config.tls_loopback else "all connections but loopback"
    found = f"TLS on {what}, with the certificates in {config.tls_directory}"
    checks = [Check("tls", "encryption", Verdict.OK, found)]
    for report in inspect_directory(config.tls_directory, datetime.datetime.now(datetime.UTC)):
        verdict = Verdict.OK if report.degree == "good" else Verdict.DEGRADED
        if report.degree == "bad" and needed:
            verdict = Verdict.BLOCKED
        checks.append(Check("tls", report.path.name, verdict, report.reason, report.advice))
    return checks
