"""One data connection, seen from the source: frames out, counted for the barrier.

A channel is used by one thread at a time. Payload goes from the mapping to the socket inside C.
"""

from __future__ import annotations

import contextlib
import socket
import time

from pageferry.kernel import transfer
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.packing import ENCODING
from pageferry.kernel.pageset import Runs
from pageferry.migration.packing import BatchPacking
from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.errors import PeerLostError
from pageferry.net.connecting import begin_data
from pageferry.net.data import DataSocket, close_at_once, wire_address
from pageferry.wire.frames import encode_head
from pageferry.wire.messages import Barrier, Holes, Message, Packed, Pages, Zeros


class Channel:
    """A connected, blocking socket to the destination's agent, attached by its first message.

    Every method may block.

    All raise PeerLostError when the connection ends or has been shut down by `shutdown`, the one
    method that other threads may call.
    """

    def __init__(self, sock: DataSocket, index: int, packing: BatchPacking | None = None) -> None:
        """*packing* None: the other agent does not know packed pages."""
        self.index = index
        self._socket = sock
        self._packing = packing
        self._frames = 0

    def begin(self) -> None:
        """Get ready; must come first. With TLS the destination's worker must be there for it."""
        begin_data(self._socket)

    def pages(
        self, block: int, mapping: RamMapping, round_number: int, runs: Runs, *, cold: bool
    ) -> int:
        """Send the contents of *runs*; *cold* tells the destination to page them out again.

        Returns the bytes that this took on the connection, without the frame's head.
        """
        packed = self._packing.try_pack(mapping, runs) if self._packing else None
        began_ns = time.monotonic_ns()
        try:
            if packed is None:
                self._send_plain(block, mapping, round_number, runs, cold=cold)
            else:
                self._send_packed(block, packed, round_number, runs, cold=cold)
        except OSError as error:
            raise self._lost(error) from error
        self._frames += 1
        sent_bytes = runs.pages * PAGE_BYTES if packed is None else len(packed)
        if self._packing is not None:
            note = self._packing.sent_plain if packed is None else self._packing.sent_packed
            note(sent_bytes, time.monotonic_ns() - began_ns)
        return sent_bytes

    def _send_plain(
        self, block: int, mapping: RamMapping, round_number: int, runs: Runs, *, cold: bool
    ) -> None:
        head = encode_head(
            Pages(block=block, round=round_number, runs=runs.to_list(), cold=cold),
            runs.pages * PAGE_BYTES,
        )
        transfer.send_payload(
            self._socket.fileno(), head, mapping, runs, wire_address=wire_address(self._socket)
        )

    def _send_packed(
        self, block: int, packed: memoryview, round_number: int, runs: Runs, *, cold: bool
    ) -> None:
        message = Packed(
            block=block,
            round=round_number,
            runs=runs.to_list(),
            cold=cold,
            encoding=ENCODING,
            length=len(packed),
        )
        self._socket.sendall(encode_head(message))
        self._socket.sendall(packed)

    def zeros(self, block: int, round_number: int, runs: Runs) -> None:
        """Tell the destination that these pages hold only zeros."""
        self._send(Zeros(block=block, round=round_number, runs=runs.to_list()))
        self._frames += 1

    def holes(self, block: int, round_number: int, runs: Runs) -> None:
        """Tell the destination that these pages were given back and are holes now."""
        self._send(Holes(block=block, round=round_number, runs=runs.to_list()))
        self._frames += 1

    def barrier(self, round_number: int) -> int:
        """End the round on this channel. Returns how many frames it had, and counts anew."""
        frames, self._frames = self._frames, 0
        self._send(Barrier(round=round_number, frames=frames))
        return frames

    def shutdown(self) -> None:
        """Make whatever blocks on this channel return with an error, now and later."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, and drop what is on its way; no thread may be using it any more."""
        close_at_once(self._socket)

    def _send(self, message: Message) -> None:
        try:
            self._socket.sendall(encode_head(message))
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> PeerLostError:
        return PeerLostError(
            f"data connection {self.index} to the destination broke: {error.strerror or error}"
        )
