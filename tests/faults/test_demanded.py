"""A source asks for its guest back just as the commit is under way: real guests, real agents."""

from __future__ import annotations

import contextlib
import os
from typing import Final

import pytest
import trio

from pageferry.model.errors import PeerLostError
from pageferry.net.control import ControlStream
from pageferry.testing.lab.packages import QemuBinary
from pageferry.wire.messages import Abort, Aborted, Message, Query, QueryReply
from pageferry.wire.session import Exchange, Role
from tests.faults.afterwards import assert_settled
from tests.faults.cases import Case, D, Fault, Owner, Phase, S
from tests.faults.recording import WHOLE_VARIABLE
from tests.faults.world import PATIENCE_S, World, world_of

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu]


def demanded(world: World) -> tuple[str, Message | None]:
    """What the destination's journal says, and what its agent says when it is asked to give the
    guest up: nothing, where the connection ends."""

    async def ask() -> tuple[str, Message | None]:
        there = world.pair.there
        stream = await trio.open_tcp_stream(there.host, there.port)
        control = ControlStream(stream, Exchange(Role.SOURCE))
        answer: Message | None = None
        with trio.fail_after(PATIENCE_S):
            await control.send(Query(migration_id=world.migration_id))
            told = await control.receive()
            with contextlib.suppress(PeerLostError):
                await control.send(Abort(kind="unknown", message="", advice=""))
                answer = await control.receive()
        await control.aclose()
        assert isinstance(told, QueryReply)
        return told.phase, answer

    return trio.run(ask)


CASES: Final = [
    # The source has written the commit down, and says it afterwards: too late.
    (S.COMMIT, "loaded", Aborted(), Owner.SOURCE),
    (D.COMMITTED, "committed", None, Owner.DESTINATION),
]

# The other one takes 5 s more: the destination leaves a source time to read its last word.
CHOSEN: Final = CASES if WHOLE_VARIABLE in os.environ else CASES[1:]


@pytest.mark.usefixtures("host_swap")
@pytest.mark.parametrize(("phase", "told", "answer", "owner"), CHOSEN)
def test_a_guest_is_given_up_or_taken_and_never_both(
    phase: Phase, told: str, answer: Message | None, owner: Owner, newest_qemu: QemuBinary
) -> None:
    with world_of(Case(phase, Fault.CANCELLED_AT_DESTINATION), newest_qemu) as world:
        world.begin()
        world.wait_held(phase)
        assert demanded(world) == (told, answer), world.logs()
        world.release(phase)
        assert assert_settled(world).owner is owner, world.logs()
