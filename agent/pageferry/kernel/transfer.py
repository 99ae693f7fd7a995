"""Page payload between sockets and guest memory.

For threads: every call blocks and releases the GIL. Sockets may be blocking or not; a send or
receive timeout of the socket (SO_SNDTIMEO, SO_RCVTIMEO) raises TimeoutError. A connection that
broke raises ConnectionError (BrokenPipeError, ConnectionResetError; ConnectionAbortedError when
TLS failed), and so does one that the peer closes before the last byte. After any OSError an unknown
part has been sent or received, so the connection is of no use any more.

A *wire_address* is that of a ``struct pf_wire``, a TLS session on the socket: payload then goes
through it instead of the bare socket.
"""

from __future__ import annotations

import errno
from typing import Any

from pageferry.kernel._native import ffi, lib
from pageferry.kernel.errors import check
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import Runs
from pageferry.kernel.paging import ZERO_LEVEL
from pageferry.kernel.placing import Placer
from pageferry.model.blocks import PAGE_BYTES

SCRATCH_BYTES = 256 * 1024
"""What is received before it is written. Fits a second-level cache, so the copy is nearly free."""


class Scratch:
    """Memory that one receiving thread uses over and over."""

    __slots__ = ("_memory", "length_bytes")

    def __init__(self, length_bytes: int = SCRATCH_BYTES) -> None:
        """Raises ValueError when *length_bytes* is not at least one whole page."""
        if length_bytes < PAGE_BYTES or length_bytes % PAGE_BYTES:
            raise ValueError(f"{length_bytes} bytes are not whole pages")
        self.length_bytes = length_bytes
        self._memory: Any = ffi.new("uint8_t[]", length_bytes)


def split_zero(mapping: RamMapping, runs: Runs) -> tuple[Runs, Runs]:
    """Part *runs* into the pages that hold something and those that are all zero.

    Reads, and so maps, every page of them: holes must not be among them.
    """
    nonzero = ffi.new("struct pf_runs **")
    zero = ffi.new("struct pf_runs **")
    with mapping.use() as base:
        check(
            lib.pf_split_zero(base, mapping.pages, runs._native, ZERO_LEVEL, nonzero, zero),
            "look for zero pages",
        )
    return Runs(nonzero[0]), Runs(zero[0])


def send_payload(
    sock_fd: int,
    head: bytes,
    mapping: RamMapping,
    runs: Runs,
    *,
    wire_address: int | None = None,
) -> None:
    """Send *head*, then the pages of *runs* in order, straight from the mapping.

    The guest may write the pages meanwhile: what is sent is no snapshot, and a page torn that way
    is reported as written by the next scan.
    """
    with mapping.use() as base:
        what = (head, len(head), base, mapping.pages, runs._native)
        if wire_address is None:
            error = lib.pf_send_payload(sock_fd, *what)
        else:
            error = lib.pf_send_payload_over(_wire(wire_address), *what)
    _check(error, "send guest pages")


def receive_payload(
    sock_fd: int,
    ram_fd: int,
    file_offset_bytes: int,
    runs: Runs,
    scratch: Scratch,
    *,
    placer: Placer | None = None,
    wire_address: int | None = None,
) -> None:
    """Receive the pages of *runs* in order and write them to the file at *file_offset_bytes*.

    With *placer*, which is one for that part of the file, those that are new to the file are placed
    without its lock.
    *runs* must have been checked against the block's length (`Runs.from_list`). Pages that were
    holes are charged to the memory cgroup of the calling process. Raises OSError with ENOSPC when
    the file system is full.
    """
    where = (ram_fd, file_offset_bytes, runs._native)
    how = (ffi.NULL if placer is None else placer._native, scratch._memory, scratch.length_bytes)
    if wire_address is None:
        error = lib.pf_receive_payload(sock_fd, *where, *how)
    else:
        error = lib.pf_receive_payload_over(_wire(wire_address), *where, *how)
    _check(error, "receive guest pages")
    lib.pf_drain_batch()


def _check(error: int, action: str) -> None:
    if error == errno.EPROTO:
        raise ConnectionAbortedError(error, f"TLS failed: {action}")
    check(error, action)


def _wire(address: int) -> Any:
    return ffi.cast("const struct pf_wire *", address)


def receive_exact(sock_fd: int, length_bytes: int, buffer: bytearray | memoryview) -> None:
    """Receive exactly *length_bytes* into the start of *buffer*."""
    if length_bytes > memoryview(buffer).nbytes:
        raise ValueError(f"{length_bytes} bytes do not fit into the buffer")
    memory = ffi.from_buffer("uint8_t[]", buffer, require_writable=True)
    try:
        check(lib.pf_receive_exact(sock_fd, memory, length_bytes), "receive")
    finally:
        ffi.release(memory)
