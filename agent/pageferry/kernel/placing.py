"""Placing pages that a RAM file has nothing of yet, by several threads at once.

pwrite holds the file's lock while it allocates and fills a page, so that all threads together are
no faster than one; UFFDIO_COPY (Documentation/admin-guide/mm/userfaultfd.rst) does the same without
it. What is there already is written by pwrite, so it does not matter which pages are new.

A copy makes single pages. Where the file may have huge ones, pwrite is left to allocate them.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from pageferry.kernel._native import ffi, lib
from pageferry.kernel.errors import check
from pageferry.kernel.mapping import RamMapping
from pageferry.model.blocks import PAGE_BYTES

log = logging.getLogger(__name__)


class Placer:
    """For `transfer.receive_payload`, by any number of threads. Gone with its last reference."""

    __slots__ = ("_native",)

    def __init__(self, mapping: RamMapping) -> None:
        """For the part of the file that *mapping* maps; its descriptor must be writable, and is not
        duplicated. Raises OSError where the kernel has no userfaultfd for this process.
        """
        out = ffi.new("struct pf_placer **")
        error = lib.pf_placer_create(
            mapping.fd, mapping.file_offset_bytes, mapping.length_bytes, out
        )
        check(error, "register guest RAM for placing pages")
        self._native: Any = ffi.gc(out[0], lib.pf_placer_destroy)


def placer_for(mapping: RamMapping) -> Placer | None:
    """A placer; None where there can be none, and pwrite has to do, or does better."""
    if os.fstat(mapping.fd).st_blksize > PAGE_BYTES:
        # So shmem says that the mount, or the host, allows huge pages (shmem_getattr, mm/shmem.c).
        return None
    try:
        return Placer(mapping)
    except OSError as error:
        log.info("pages are placed by pwrite, one thread at a time: %s", error)
        return None
