"""The other agent, when it speaks too late."""

from __future__ import annotations

from typing import cast

import pytest
import trio

from pageferry.migration.peer import open_peer
from pageferry.model.errors import PeerLostError
from pageferry.net.control import ControlStream
from pageferry.wire.messages import Message, Running


class Late:
    """A connection that is taken for silent, and then is not."""

    def __init__(self) -> None:
        self.said = trio.Event()

    async def heartbeat(self, _interval_s: float, _silence_s: float) -> None:
        raise PeerLostError("nothing was heard")

    async def receive(self) -> Message:
        if self.said.is_set():
            await trio.sleep_forever()
        await trio.sleep(0.05)
        self.said.set()
        return Running(status="running")

    async def aclose(self) -> None:
        return


async def test_what_is_said_after_the_silence_is_no_error_of_ours() -> None:
    """The guest may run over there by then: nothing else may be told of it than that it is so."""
    late = Late()
    async with open_peer(cast(ControlStream, late)) as peer:
        with pytest.raises(PeerLostError, match="nothing was heard"):
            await peer.expect(Running)
        await late.said.wait()
        await trio.sleep(0.05)
