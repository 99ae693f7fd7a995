"""Whether a QEMU is there and answers, before it is spoken to in earnest."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

import trio

MAX_ANSWER_BYTES: Final = 65536
"""QEMU's greeting and its answer are some hundred bytes, and a few events may come between."""


def listens(qmp: str) -> bool:
    """Whether somebody listens at the socket *qmp*. Raises OSError when it cannot be asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.connect(qmp)
        except BlockingIOError:
            return True  # its queue is full: somebody listens, and is busy
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                return False
            raise
        return True


async def answerer(qmp: str) -> int | None:
    """The process that answers a command on the monitor *qmp*; None where none does.

    QEMU listens, and greets, before it has looked at most of its options. Commands run in its main
    loop, once the machine is made.
    """
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            await sock.connect(qmp)
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            await sock.send(b'{"execute": "qmp_capabilities"}\n')
            said = b""
            while b'"return"' not in said:
                received = await sock.recv(4096)
                if not received or len(said) > MAX_ANSWER_BYTES:
                    return None
                said += received
        except OSError:
            return None
    pid: int = struct.unpack("3i", credentials)[0]
    return pid
