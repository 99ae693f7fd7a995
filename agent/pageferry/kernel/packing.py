"""Batches of pages packed by zstd, between guest memory and buffers in C.

For threads: packing and unpacking release the GIL. A `Packer` or `Unpacker` is used by one thread
at a time. Page contents never become Python objects.
"""

from __future__ import annotations

import errno
from typing import Any

from pageferry.kernel._native import ffi, lib
from pageferry.kernel.errors import check
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import Runs
from pageferry.model.blocks import PAGE_BYTES

ENCODING = "zstd"
"""Its name on the wire."""


class Packer:
    """Packs batches of at most *max_pages* pages."""

    def __init__(self, max_pages: int) -> None:
        """Raises ValueError for less than a page or more than 8 MiB of them."""
        out = ffi.new("struct pf_packer **")
        error = lib.pf_packer_create(max_pages, out)
        if error == errno.EINVAL:
            raise ValueError(f"no packer for {max_pages} pages")
        check(error, "make a packer")
        self._native = ffi.gc(out[0], lib.pf_packer_destroy)

    def pack(self, mapping: RamMapping, runs: Runs, level: int) -> memoryview:
        """Pack the pages of *runs*. The result is the packer's memory, until its next use.

        The guest may write the pages meanwhile, as with any copy of them.
        """
        size = ffi.new("size_t *")
        with mapping.use() as base:
            error = lib.pf_pack(self._native, base, mapping.pages, runs._native, level, size)
        check(error, "pack guest pages")
        return memoryview(ffi.buffer(lib.pf_packer_data(self._native), size[0]))


class Unpacker:
    """Unpacks frames of at most *max_packed_bytes*, *scratch_bytes* at a time."""

    def __init__(self, max_packed_bytes: int, scratch_bytes: int) -> None:
        """Raises ValueError when *scratch_bytes* is not at least one whole page."""
        if scratch_bytes < PAGE_BYTES or scratch_bytes % PAGE_BYTES or max_packed_bytes < 1:
            raise ValueError(f"no unpacker for {max_packed_bytes}, {scratch_bytes} bytes")
        out = ffi.new("struct pf_unpacker **")
        check(lib.pf_unpacker_create(max_packed_bytes, scratch_bytes, out), "make an unpacker")
        self._native: Any = ffi.gc(out[0], lib.pf_unpacker_destroy)
        self._max_packed_bytes = max_packed_bytes

    def buffer(self, packed_bytes: int) -> memoryview:
        """Where to receive a frame. Raises ValueError when it is too long."""
        if packed_bytes > self._max_packed_bytes:
            raise ValueError(f"{packed_bytes} bytes are more than {self._max_packed_bytes}")
        return memoryview(ffi.buffer(lib.pf_unpacker_buffer(self._native), packed_bytes))

    def unpack(self, packed_bytes: int, ram_fd: int, file_offset_bytes: int, runs: Runs) -> None:
        """Write the pages in the buffer's first *packed_bytes* to where *runs* says.

        Raises ValueError when these are not exactly the pages of *runs*, packed whole and undamaged
        (some of them may have been written then), and OSError as writing does.
        """
        error = lib.pf_unpack(self._native, packed_bytes, ram_fd, file_offset_bytes, runs._native)
        if error in (errno.EBADMSG, errno.E2BIG):
            raise ValueError("a packed batch is damaged, or holds other pages than it says")
        check(error, "place unpacked guest pages")
        lib.pf_drain_batch()
