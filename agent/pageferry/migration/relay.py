"""QEMU's device state, carried over the agents' own connection.

Each QEMU has one end of a socket pair as its migration channel; the agent holds the other. Bytes go
both ways, since the return path carries the destination's acknowledgements back to the source, and
so does the end of each direction (a half-close).
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio

from pageferry.wire.messages import DeviceData, DeviceEnd

CHUNK_BYTES = 256 * 1024
"""One DeviceData: device state is some hundred KiB to a few MiB in all, and the limit is 1 MiB."""

Send = Callable[[DeviceData | DeviceEnd], Awaitable[None]]


class DeviceRelay:
    """One side of the relay: what QEMU writes goes to *send*, what `deliver` gets goes to QEMU."""

    def __init__(self, send: Send) -> None:
        ours, self._qemu_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._send = send
        self.ended = trio.Event()
        """Set when all that QEMU wrote has been sent on, and its end."""
        self.from_qemu_bytes = 0
        self.to_qemu_bytes = 0

    @property
    def qemu_fd(self) -> int:
        """The descriptor to hand to QEMU; `release_qemu_end` closes it here afterwards."""
        return self._qemu_end.fileno()

    def release_qemu_end(self) -> None:
        """Close our copy of QEMU's end, so that QEMU's closing it is seen as the end."""
        self._qemu_end.close()

    async def pump(self) -> None:
        """Send on what QEMU writes until it closes its end. Raises what *send* raises."""
        while True:
            try:
                data = await self._stream.receive_some(CHUNK_BYTES)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                await self._send(DeviceEnd())
                self.ended.set()
                return
            self.from_qemu_bytes += len(data)
            await self._send(DeviceData(payload=bytes(data)))

    async def deliver(self, message: DeviceData | DeviceEnd) -> None:
        """Write what the other side's QEMU wrote. A QEMU that is gone is noticed over QMP, not
        here."""
        try:
            if isinstance(message, DeviceEnd):
                await self._stream.send_eof()
            else:
                await self._stream.send_all(message.payload)
                self.to_qemu_bytes += len(message.payload)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def close(self) -> None:
        """Close both ends."""
        self._qemu_end.close()
        self._stream.socket.close()
