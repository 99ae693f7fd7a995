"""The doctor's look at another host: its agent is asked as a migration would ask, TLS and all.

Both sides are here: what a source makes of the answer, and the answer of a destination.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Final

from pageferry.certificates.description import CertificateInfo
from pageferry.daemon.config import Config
from pageferry.model.errors import PageferryError, RefusedError
from pageferry.model.residency import ResidencyBytes
from pageferry.model.verdict import Check, Verdict
from pageferry.net.address import Address
from pageferry.net.asking import ask
from pageferry.net.connecting import Route, find_route
from pageferry.policy.peers import any_matches
from pageferry.wire.messages import Query, QueryReply

ANSWER_S: Final = 30.0
"""The agent there looks at its QEMU, and may take 20 s for it."""

NOT_ALLOWED: Final = "not-allowed"
"""The phase that a source hears that may not ask; to it that settles nothing."""

ADD_SWAP: Final = "add swap there: without it cold pages stay in memory where they arrive"

GROW_TMPFS: Final = (
    "mount -o remount,size=… /dev/shm there, if the guest's RAM file lies on it: a guest that finds"
    " no room dies by SIGBUS"
)

MIB: Final = 1 << 20


async def check_destination(
    config: Config, destination: Address, checks: Sequence[Check], other_name: str | None = None
) -> list[Check]:
    """The agent there, and whether it has room for the guests whose RAM is in *checks*.

    *other_name*: what the only one of them is called there.
    """
    guests = {check.guest: check.ram for check in checks if check.ram is not None}
    found: list[Check] = []
    for guest, ram in guests.items() or {"": None}.items():
        try:
            route = find_route(destination, config.encryption, _may_receive(config, guest))
            name = other_name or guest
            query = Query(migration_id=secrets.token_hex(16), guest=name)
            reply = await ask(route, query, ANSWER_S)
        except PageferryError as error:
            blocked = Check(
                "destination", "agent", Verdict.BLOCKED, error.message, error.advice, guest
            )
            return [*found, blocked]
        if not found:
            found.append(Check("destination", "agent", Verdict.OK, _answers(route)))
        if ram is not None:
            found += guest_checks(guest, ram, reply)
    return found


def guest_checks(guest: str, ram: ResidencyBytes, reply: QueryReply) -> list[Check]:
    """What the agent there said of *guest*, whose RAM is as *ram* says here."""
    if reply.phase == NOT_ALLOWED:
        fix = "there, add the guest to may-send of this host's certificate in [peers]"
        return [Check("destination", "peers", Verdict.BLOCKED, reply.detail, fix, guest)]
    if reply.verdict not in set(Verdict):
        found = "not told by the agent there, which is of an earlier version"
        fix = "run pageferry doctor there, and hold its memory, swap and tmpfs against the guest"
        return [Check("destination", "memory and swap", Verdict.UNKNOWN, found, fix, guest)]
    # What it says of "this host" it says of its own.
    found = f"the agent there says: {reply.detail}"
    told = Check("destination", "guest", Verdict(reply.verdict), found, reply.advice, guest)
    return [told, *room_checks(guest, ram, reply)]


def room_checks(guest: str, ram: ResidencyBytes, reply: QueryReply) -> list[Check]:
    """Whether what the guest has here is free there."""
    used = ram.resident_bytes + ram.swapped_bytes
    if used > reply.memory_bytes + reply.swap_bytes:
        lacking = Verdict.BLOCKED
        fix = "free memory or add swap there: guests would be killed for want of both"
    else:
        lacking = Verdict.DEGRADED
        fix = "free memory there: the guest would push out what others have"
    found = []
    for name, needed, free, otherwise, advice in (
        ("memory", ram.resident_bytes, reply.memory_bytes, lacking, fix),
        ("swap", ram.swapped_bytes, reply.swap_bytes, Verdict.DEGRADED, ADD_SWAP),
        ("tmpfs", used, reply.tmpfs_bytes, Verdict.DEGRADED, GROW_TMPFS),
    ):
        enough = needed <= free
        found.append(
            Check(
                "destination",
                name,
                Verdict.OK if enough else otherwise,
                f"{_mib(free)} free, {_mib(needed)} needed",
                "" if enough else advice,
                guest,
                free_bytes=free,
            )
        )
    return found


def _may_receive(config: Config, guest: str) -> Callable[[CertificateInfo], None]:
    """Checks the certificate there against [peers] here, as a migration would."""
    receivers = config.peers.receivers(guest) if guest else None

    def check(certificate: CertificateInfo) -> None:
        if receivers is not None and not any_matches(certificate.names, receivers):
            raise RefusedError(
                f"certificate {certificate} may not receive guest {guest} from this host",
                advice="add the guest to may-receive of the certificate in [peers] on this host",
            )

    return check


def _answers(route: Route) -> str:
    how = "unencrypted" if route.context is None else "encrypted, with certificates of both hosts"
    return f"{route.address} answers, {how}"


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / MIB:.0f} MiB"
