"""The link between pageferryd and one worker process: JSON packets, with descriptors beside them.

A SOCK_SEQPACKET pair keeps packets whole, so there is nothing to frame, and carries descriptors
(the control connection and the data connections that the daemon accepted for a destination worker).
The end of either process is the end of the link: the other side reads an empty packet.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

import trio

PACKET_BYTES = 192 * 1024
"""Longest packet; a job or a status is a few KiB, and the kernel's default buffer is 208 KiB."""

MAX_DESCRIPTORS = 4

TOKEN_VARIABLE: Final = "PAGEFERRY_WORKER_TOKEN"
"""In each worker's environment, and in its packets that say who it is: the next daemon knows by it
that the process with that number is still the one that said so."""


class LinkLostError(Exception):
    """The process at the other end of the link is gone."""


class Link:
    """One end of the link. One task may receive, any number may send."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = trio.socket.from_stdlib_socket(sock)
        self._send_lock = trio.Lock()

    async def send(self, packet: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one packet with duplicates of *fds*; the caller keeps its own.

        Raises LinkLostError when the other end is gone, or this one was closed. After a
        cancellation the packet has been sent whole or not at all.
        """
        data = json.dumps(packet, separators=(",", ":")).encode()
        if len(data) > PACKET_BYTES:
            raise ValueError(f"link packet of {len(data)} bytes, more than {PACKET_BYTES}")
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            async with self._send_lock:
                if self._socket.fileno() < 0:
                    raise LinkLostError("this end of the link was closed")
                await self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionError, trio.ClosedResourceError) as error:
            raise LinkLostError("the process at the other end is gone") from error

    async def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The next packet and the descriptors that came with it, which the caller then owns.

        Raises LinkLostError at the end. After a cancellation nothing has been taken off the link.
        """
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        while True:
            try:
                data, ancillary, _flags, _address = await self._socket.recvmsg(
                    PACKET_BYTES, space, socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionResetError:
                # The other end closed with something of ours unread. The kernel says so once, ahead
                # of what it had sent before: its last word is still to come.
                continue
            except (ConnectionError, trio.ClosedResourceError) as error:
                raise LinkLostError("the process at the other end is gone") from error
            break
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if not data:
            for fd in fds:
                os.close(fd)
            raise LinkLostError("the process at the other end is gone")
        return json.loads(data), list(fds)

    def fileno(self) -> int:
        """The descriptor of this end."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the other end reads the end of the link."""
        self._socket.close()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair: one end for the daemon, one to be inherited by the worker."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * PACKET_BYTES)
    return ours, theirs
