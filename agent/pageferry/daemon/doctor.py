"""Everything that query-doctor answers: this host, its guests, a destination, TLS."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import Final

import trio

from pageferry.certificates.inspection import inspect_directory
from pageferry.daemon.config import Config
from pageferry.daemon.destination_checks import check_destination
from pageferry.daemon.guests import Guest
from pageferry.daemon.hooks import Hooks
from pageferry.daemon.supervisor import Supervisor
from pageferry.model.errors import RefusedError
from pageferry.model.launch import Launch
from pageferry.model.phase import NO_JOURNAL
from pageferry.model.verdict import Check, Verdict, worst_of
from pageferry.net.address import Address
from pageferry.wire.messages import QueryReply

GUEST_S: Final = 20.0
"""How long a look at one guest may take: QEMU's main loop may be stuck."""


async def examine(
    supervisor: Supervisor,
    hooks: Hooks,
    guest: Guest | None,
    destination: Address | None,
    destination_guest: str | None = None,
) -> list[Check]:
    """All checks, section by section. With *guest* only that one is looked at beside the host, and
    it may have another name at the *destination*."""
    config = supervisor.config
    checks = list(await hooks.check_host())
    checks += hooks.check_tls(config)
    for each in [guest] if guest is not None else supervisor.guests.all():
        checks += await check_guest(supervisor, hooks, each)
    if destination is not None:
        # Of guests that nobody means to send there, no QEMU waits for any.
        needs = checks if guest is not None else []
        checks += await check_destination(config, destination, needs, destination_guest)
    return checks


async def check_guest(
    supervisor: Supervisor, hooks: Hooks, guest: Guest, side: str | None = None
) -> Sequence[Check]:
    """One guest of this host; with *side*, whether it can be on that one."""
    launch = supervisor.config.launches.get(guest.name)
    if not guest.qmp.is_socket() and launch is not None:
        return [check_launch(guest, launch)]
    if not guest.qmp.is_socket():
        found = f"{guest.qmp} is not there: the guest does not run"
        return [
            Check("guest", "qmp", Verdict.UNKNOWN, found, "start it to look at it", guest.label)
        ]
    try:
        async with supervisor.looks.at(guest, "the doctor is looking at it"):
            with trio.move_on_after(GUEST_S):
                return await hooks.check_guest(guest.label, guest.qmp, side)
            found = f"QEMU did not answer within {GUEST_S:.0f} s"
            fix = "see whether its storage hangs, and whether another program holds its QMP socket"
            return [Check("guest", "qmp", Verdict.BLOCKED, found, fix, guest.label)]
    except RefusedError as error:
        return [Check("guest", "qmp", Verdict.UNKNOWN, error.message, error.advice, guest.label)]


async def room_for(
    supervisor: Supervisor, hooks: Hooks, name: str, sender: Sequence[str]
) -> QueryReply:
    """What an agent is told that asks whether guest *name* could come here; *sender*: the names in
    its certificate."""
    try:
        guest = supervisor.guests.by_name(name)
        told = worst_of(await _check_arrival(supervisor, hooks, guest, sender))
    except RefusedError as error:
        told = Check("guest", "guest", Verdict.BLOCKED, error.message, error.advice, name)
    room = await trio.to_thread.run_sync(hooks.room)
    return QueryReply(
        phase=NO_JOURNAL,
        detail=f"{told.name}: {told.found}",
        verdict=told.verdict.value,
        advice=told.fix,
        memory_bytes=room.memory_bytes,
        swap_bytes=room.swap_bytes,
        tmpfs_bytes=room.tmpfs_bytes,
    )


async def _check_arrival(
    supervisor: Supervisor, hooks: Hooks, guest: Guest, sender: Sequence[str]
) -> Sequence[Check]:
    configured = supervisor.config.launches.get(guest.name)
    if guest.qmp.is_socket() or configured is not None:
        return await check_guest(supervisor, hooks, guest, "destination")
    if supervisor.config.launch_for(guest.name, sender) is not None:
        found = "its QEMU is started by the source's command line, where that is safe"
        return [Check("guest", "launch", Verdict.OK, found, "", guest.label)]
    found = f"{guest.qmp} is not there: no QEMU waits for the guest"
    fix = "start it there, with -S and -incoming defer, or say how in launch"
    return [Check("guest", "qmp", Verdict.BLOCKED, found, fix, guest.label)]


def check_launch(guest: Guest, launch: Launch) -> Check:
    """A guest that does not run here, and whose QEMU would be started for it."""
    program = launch.command[0]
    if os.access(program, os.X_OK):
        found = f"does not run here; {program} is started when it comes"
        return Check("guest", "launch", Verdict.OK, found, "", guest.label)
    found = f"{program}, which would be started when it comes, cannot be run"
    fix = f"install it, or correct launch in [guests.{guest.name}]"
    return Check("guest", "launch", Verdict.BLOCKED, found, fix, guest.label)


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
