"""The agent's own mapping of the file behind a RAM block."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Any, Self

from pageferry.kernel._native import ffi, lib
from pageferry.kernel.errors import check
from pageferry.model.blocks import PAGE_BYTES


class RamMapping:
    """A shared mapping of one block's part of its RAM file, for reading.

    Reading through it leaves no trace in what the kernel thinks is hot: the mapping is
    MADV_SEQUENTIAL, so neither its accessed bits nor its unmapping count as a reference (Linux 6.3,
    commit 8788f6781486, and in part before). It is not inherited by forked children. Reading a hole
    through it would allocate a page, so callers read data pages only.

    It is never writable, on the destination neither. In a writable mapping the entry of a dirty
    page is dirty as well (set_pte_range, mm/memory.c), and before such a page is paged out, all
    other processors that run this process are interrupted to forget it: for each page, and not once
    for 32 of them. That took 9 % of both processors' time.

    Threads may use a mapping while another closes it: `close` waits for calls that are under way,
    and later ones raise ValueError. Closing is idempotent.
    """

    def __init__(self, fd: int, file_offset_bytes: int, length_bytes: int) -> None:
        """Map *length_bytes* at *file_offset_bytes* of *fd*, which is duplicated.

        Raises ValueError unless both are whole pages and the file reaches that far, OSError when
        the file cannot be mapped.
        """
        if file_offset_bytes % PAGE_BYTES or length_bytes % PAGE_BYTES or length_bytes <= 0:
            raise ValueError(f"{length_bytes} bytes at {file_offset_bytes} are not whole pages")
        if os.fstat(fd).st_size < file_offset_bytes + length_bytes:
            raise ValueError("the file ends before the mapping would")
        out = ffi.new("uint8_t **")
        self.file_offset_bytes = file_offset_bytes
        self.length_bytes = length_bytes
        self.pages = length_bytes // PAGE_BYTES
        self.fd = os.dup(fd)
        """This mapping's own descriptor of the RAM file."""
        error = lib.pf_map(self.fd, file_offset_bytes, length_bytes, False, out)
        if error:
            os.close(self.fd)
        check(error, "map guest RAM")
        self._base: Any = out[0]
        self._users = 0
        self._closed = False
        self._idle = threading.Condition()

    def use(self) -> _Use:
        """The mapping's first byte, as a ``uint8_t *`` that stays valid within the context."""
        return _Use(self)

    def _enter(self) -> Any:
        with self._idle:
            if self._closed:
                raise ValueError("the mapping is closed")
            self._users += 1
        return self._base

    def _leave(self) -> None:
        with self._idle:
            self._users -= 1
            if self._closed:
                self._idle.notify_all()

    def view(self, start_page: int, page_count: int) -> memoryview:
        """The bytes of those pages, read-only and not copied.

        Touching it faults pages in. It must not be used any more once the mapping is closed.
        """
        if start_page < 0 or page_count < 0 or start_page + page_count > self.pages:
            raise ValueError(f"{page_count} pages from {start_page} on, of {self.pages}")
        with self.use() as base:
            data = ffi.buffer(base + start_page * PAGE_BYTES, page_count * PAGE_BYTES)
        return memoryview(data).toreadonly()

    def close(self) -> None:
        """Unmap and close the descriptor, once no thread uses the mapping any more."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            self._idle.wait_for(lambda: not self._users)
        check(lib.pf_unmap(self._base, self.length_bytes), "unmap guest RAM")
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Use:
    """A context manager by hand: batches of the cold pass enter a hundred thousand of them."""

    __slots__ = ("_mapping",)

    def __init__(self, mapping: RamMapping) -> None:
        self._mapping = mapping

    def __enter__(self) -> Any:
        return self._mapping._enter()

    def __exit__(self, *_exception: object) -> None:
        self._mapping._leave()
