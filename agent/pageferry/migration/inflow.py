"""The destination's data connections: attached with their token, served by a thread each."""

from __future__ import annotations

import hmac

import trio

from pageferry.migration.receiving import RamReceiver, out_of_memory
from pageferry.migration.stoppable import run_stoppable
from pageferry.model.errors import MigrationFailedError, PeerLostError
from pageferry.net.data import DataSocket, close_at_once
from pageferry.wire.messages import RoundEnd


class Inflow:
    """Data connections of one migration. `attach` them, then `serve_all` beside the
    choreography."""

    def __init__(self, receiver: RamReceiver, channels: int, token: bytes) -> None:
        self._receiver = receiver
        self._token = token
        self._sockets: list[DataSocket | None] = [None] * channels
        self._attached = trio.Event()
        self._moved = trio.Event()

    def attach(self, sock: DataSocket, channel: int, token: bytes) -> bool:
        """Take a connection that says it is *channel*; False, and nothing done, when it is not.

        The token is compared in constant time, and each channel is attached once, so that a
        replayed one gets nothing.
        """
        expected = 0 <= channel < len(self._sockets) and self._sockets[channel] is None
        if not hmac.compare_digest(token, self._token) or not expected:
            return False
        self._sockets[channel] = sock
        if all(self._sockets):
            self._attached.set()
        return True

    async def wait_attached(self, timeout_s: float) -> None:
        """Wait until all are there. Raises MigrationFailedError when they are not in time."""
        with trio.move_on_after(timeout_s):
            await self._attached.wait()
            return
        missing = sum(sock is None for sock in self._sockets)
        raise MigrationFailedError(
            f"{missing} of {len(self._sockets)} data connections were not attached",
            advice="check the network between the agents",
        )

    async def serve_all(self) -> None:
        """Place pages until cancelled, or until the first connection ends: PeerLostError, or
        worse."""
        async with trio.open_nursery() as nursery:
            for channel, sock in enumerate(self._sockets):
                assert sock is not None
                nursery.start_soon(self._serve, channel, sock)

    async def placed(self, end: RoundEnd) -> int:
        """Wait until the round that *end* ends is placed. Returns the cold pages that stayed in."""
        self._receiver.round_ends(end)
        while True:
            # Made before looking, so that a barrier in between is not missed.
            self._moved = trio.Event()
            if self._receiver.round_is_placed():
                break
            await self._moved.wait()
        return await trio.to_thread.run_sync(self._receiver.next_round)

    def close(self) -> None:
        """Close the sockets; no thread may be using them any more."""
        for sock in self._sockets:
            if sock is not None:
                close_at_once(sock)

    def _note_move(self) -> None:
        self._moved.set()

    async def _serve(self, channel: int, sock: DataSocket) -> None:
        def moved() -> None:
            trio.from_thread.run_sync(self._note_move)

        def work() -> None:
            try:
                self._receiver.serve(sock, channel, moved)
            except (ConnectionError, EOFError) as error:
                raise PeerLostError(f"data connection {channel} ended: {error}") from error
            except OSError as error:
                raise out_of_memory(error) from error

        await run_stoppable(work, self._receiver.stop)
