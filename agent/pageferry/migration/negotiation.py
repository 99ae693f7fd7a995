"""Getting to know the other agent: connect, hello, describe the guest, attach the data connections.

Nothing of the guest is touched here, so whatever goes wrong is a refusal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import trio

from pageferry import __version__
from pageferry.certificates.description import CertificateInfo
from pageferry.migration.channel import Channel
from pageferry.migration.guest_ram import CarriedBlock
from pageferry.migration.job import MAX_VERSION, MIN_VERSION, SourceJob
from pageferry.migration.packing import BatchPacking, PackingSettings
from pageferry.migration.peer import M, Peer
from pageferry.model.errors import PageferryError, PeerLostError, RefusedError
from pageferry.model.phase import DestinationPhase
from pageferry.net.address import Address
from pageferry.net.connecting import Route, find_route, open_control, open_data
from pageferry.net.control import ControlStream
from pageferry.net.encryption import Encryption
from pageferry.policy.ownership import may_demand
from pageferry.qemu.look import GuestView
from pageferry.wire.limits import MAX_PROSE_CHARS, MAX_WORDS, PACKED_SINCE_VERSION
from pageferry.wire.messages import (
    Abort,
    Aborted,
    Attach,
    Describe,
    Hello,
    HelloReply,
    Query,
    QueryReply,
    Ready,
    Started,
)

MAX_COMMAND_CHARS = 32768
"""Of a command line that is told: a quarter of what a message's meta may be, at most."""

DEMAND = "the source has had no answer to its commit, and asks for the guest back"

DEMAND_TIMEOUT_S = 25.0
"""A QEMU that is ended gives its guest's memory back first, which takes seconds."""

ANSWER_TIMEOUT_S = 60.0
"""The destination looks at its QEMU, searches /proc for other mappers and clears the RAM file."""


async def connect(route: Route, job: SourceJob) -> ControlStream:
    """A control connection to the destination's agent, on which Hello has been said.

    Raises RefusedError when the agent cannot be reached, or is not who it should be.
    """
    hello = Hello(
        min_version=MIN_VERSION,
        max_version=MAX_VERSION,
        migration_id=job.migration_id,
        guest=job.destination_guest,
        agent=f"pageferry {__version__}",
    )
    return await open_control(route, hello)


async def negotiate(
    peer: Peer,
    job: SourceJob,
    view: GuestView,
    blocks: Sequence[CarriedBlock],
    command_line: tuple[str, ...],
) -> Ready:
    """Offer the guest, after Hello. Returns what the destination needs to see on the data
    connections. *command_line* is its QEMU's, for a destination that asks for it.

    Raises RefusedError when the destination does not take it or does not answer.
    """
    with trio.move_on_after(ANSWER_TIMEOUT_S):
        reply = await _answer(peer, job, HelloReply)
        await peer.send(
            Describe(
                machine=view.machine_type,
                qemu_version=".".join(str(part) for part in view.version),
                blocks=tuple(
                    (carried.block.name, carried.block.length_bytes) for carried in blocks
                ),
                guest_running=view.status == "running",
                channels=job.parameters.channels,
                verify=job.parameters.verify,
                command_line=_tellable(command_line) if reply.wants_command_line else (),
            )
        )
        return await _answer(peer, job, Ready)
    raise RefusedError(
        f"the agent at {job.host}:{job.port} does not answer",
        advice="look at the log of pageferryd there",
    )


async def attach_channels(
    peer: Peer, job: SourceJob, route: Route, ready: Ready, packing: PackingSettings
) -> list[Channel]:
    """Open the data connections that the destination agreed to. Raises RefusedError."""
    knows_packed = peer.version >= PACKED_SINCE_VERSION
    channels: list[Channel] = []
    try:
        for index in range(min(ready.channels, job.parameters.channels)):
            attach = Attach(migration_id=job.migration_id, token=ready.token, channel=index)
            sock = await trio.to_thread.run_sync(open_data, route, attach)
            channels.append(Channel(sock, index, BatchPacking(packing) if knows_packed else None))
        for channel in channels:
            await trio.to_thread.run_sync(channel.begin)
        with trio.fail_after(ANSWER_TIMEOUT_S):
            await _answer(peer, job, Started)
    except (OSError, trio.TooSlowError, PeerLostError) as error:
        _close(channels)
        raise RefusedError(
            f"the data connections to {job.host}:{job.port} could not be opened: {error}",
            advice="check the network and the log of pageferryd there",
        ) from error
    except BaseException:
        _close(channels)
        raise
    return channels


async def query_destination(
    host: str,
    port: int,
    migration_id: str,
    encryption: Encryption,
    check: Callable[[CertificateInfo], None],
    *,
    demand: bool = False,
) -> str:
    """The phase in the destination's journal, ``no-journal`` when it has none of this migration.
    With *demand*, a destination that has not written that it was told to run the guest is asked to
    give it up, and what it says then counts.

    *check* raises PageferryError for a certificate whose holder's word does not count. Raises
    PageferryError when the agent cannot be reached, does not answer, or may not be believed.
    """
    route = find_route(Address(host, port), encryption, check)
    stream = await open_control(route, Query(migration_id=migration_id))
    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            reply = await stream.receive()
        if not isinstance(reply, QueryReply):
            raise PageferryError(f"the agent at {host}:{port} did not answer the question")
        if demand and may_demand(reply.phase) and await _is_given_up(stream):
            return DestinationPhase.ABORTED.value
    except trio.TooSlowError as error:
        raise PeerLostError(f"the agent at {host}:{port} does not answer") from error
    finally:
        with trio.CancelScope(shield=True), contextlib.suppress(Exception):
            await stream.aclose()
    return reply.phase


async def _is_given_up(stream: ControlStream) -> bool:
    """Demand on a recovery connection that the destination gives the guest up. Whether it has
    promised that; an agent that does not know the demand closes the connection.
    """
    with trio.move_on_after(DEMAND_TIMEOUT_S):
        try:
            await stream.send(Abort(kind="unknown", message=DEMAND, advice=""))
            return isinstance(await stream.receive(), Aborted)
        except PageferryError:
            return False
    return False


async def _answer(peer: Peer, job: SourceJob, kind: type[M]) -> M:
    """What the destination says, where losing it means only that nothing was begun."""
    try:
        return await peer.expect(kind)
    except RefusedError as error:
        # It speaks of "this host" and means its own.
        raise RefusedError(
            f"the agent at {job.host}:{job.port} refuses: {error.message}", advice=error.advice
        ) from error
    except PageferryError as error:
        raise RefusedError(
            f"the destination did not agree to take the guest: {error.message}",
            advice=error.advice,
        ) from error


def _tellable(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words, or none where a message cannot hold them: the destination then does without."""
    whole = len(words) <= MAX_WORDS and sum(map(len, words)) <= MAX_COMMAND_CHARS
    fits = whole and all(word.isprintable() and len(word) <= MAX_PROSE_CHARS for word in words)
    return words if fits else ()


def _close(channels: Sequence[Channel]) -> None:
    for channel in channels:
        channel.close()
