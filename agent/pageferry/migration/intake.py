"""Taking page payload from one data connection into the RAM files, plain or packed."""

from __future__ import annotations

import socket

from pageferry.kernel import transfer
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.packing import ENCODING, Unpacker
from pageferry.kernel.pageset import Runs
from pageferry.kernel.placing import Placer
from pageferry.model.errors import PeerLostError, RemoteProtocolError
from pageferry.net.data import DataSocket, wire_address
from pageferry.wire.limits import MAX_PAGES_PAYLOAD_BYTES
from pageferry.wire.messages import Packed, Pages

SCRATCH_BYTES = 256 * 1024
"""Receive buffer of one thread: fits the L2 cache together with what pwrite touches."""


class Intake:
    """One connection's buffers. For the thread that receives on it."""

    def __init__(self, sock: DataSocket) -> None:
        self._socket = sock
        self._scratch = transfer.Scratch(SCRATCH_BYTES)
        self._unpacker: Unpacker | None = None

    def take(
        self, message: Pages | Packed, mapping: RamMapping, runs: Runs, placer: Placer | None
    ) -> None:
        """Receive the payload of *message* and write its pages, *runs*, to the mapping's file.

        With *placer*, if they are not packed, they may be new to it. Raises PeerLostError,
        RemoteProtocolError for a packed payload that is not these pages, and OSError when memory
        cannot be had. Some of the pages may have been written then.
        """
        try:
            if isinstance(message, Packed):
                self._take_packed(message, mapping, runs)
            else:
                self._take_plain(mapping, runs, placer)
        except (ConnectionError, EOFError) as error:
            raise PeerLostError("a data connection ended within a frame") from error

    def _take_plain(self, mapping: RamMapping, runs: Runs, placer: Placer | None) -> None:
        transfer.receive_payload(
            self._socket.fileno(),
            mapping.fd,
            mapping.file_offset_bytes,
            runs,
            self._scratch,
            placer=placer,
            wire_address=wire_address(self._socket),
        )

    def _take_packed(self, message: Packed, mapping: RamMapping, runs: Runs) -> None:
        if message.encoding != ENCODING:
            raise RemoteProtocolError(
                f"the source packs pages by {message.encoding!r}, which is not known here"
            )
        if self._unpacker is None:
            self._unpacker = Unpacker(MAX_PAGES_PAYLOAD_BYTES, SCRATCH_BYTES)
        left = self._unpacker.buffer(message.length)
        while left:
            received_bytes = self._socket.recv_into(left, 0, socket.MSG_WAITALL)
            if not received_bytes:
                raise PeerLostError("a data connection ended within a frame")
            left = left[received_bytes:]
        try:
            self._unpacker.unpack(message.length, mapping.fd, mapping.file_offset_bytes, runs)
        except ValueError as error:
            raise RemoteProtocolError(
                f"the source sent pages that do not unpack: {error}"
            ) from error
