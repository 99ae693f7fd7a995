"""Which guest pages were written since the last look, from outside QEMU.

A userfaultfd of QEMU's own address space, registered write-protect in the asynchronous mode
(UFFD_FEATURE_WP_ASYNC, Linux 6.7), marks a page as written at the first write and never blocks it;
PAGEMAP_SCAN reads and clears the marks in one pass. The descriptor comes from QEMU: one of its
threads is stopped once, for some 0.2 ms, to make it, and QEMU keeps no copy. So whenever this
process's descriptor closes, also by SIGKILL, the kernel takes the protection off by itself.

Reported are writes by the guest, by QEMU and by the kernel for QEMU, to pages that existed or not,
and pages written and then swapped out. Not reported: hole punching, writes through other mappings
or by pwrite, and direct I/O whose data land after the scan (hence: scan, then drain, then copy).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pageferry.kernel import procfs
from pageferry.kernel._native import ffi, lib
from pageferry.kernel.errors import check
from pageferry.kernel.injection import PRIVILEGE_ADVICE, take_userfaultfd
from pageferry.kernel.pageset import PageSet
from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.errors import (
    KernelFeatureError,
    RefusedError,
    TrackingLostError,
)

NEEDS_LINUX_ADVICE = "write tracking needs Linux 6.7 or later (userfaultfd WP_ASYNC, PAGEMAP_SCAN)"


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Addresses in the tracked process: ``start`` to ``end`` (exclusive), both whole pages."""

    start: int
    end: int


class WriteTracker:
    """Write tracking of some ranges of one process. Any thread may scan and close.

    Made by `arm`. Once closed, or when tracking was lost, `scan` raises TrackingLostError.
    """

    def __init__(self, pid: int, uffd: int, ranges: Sequence[AddressRange], held_ns: int) -> None:
        """For `arm`; takes over *uffd*, which is registered on *ranges*."""
        self.pid = pid
        self.held_ns = held_ns
        """How long the thread that made the descriptor was stopped."""
        self._ranges = tuple(ranges)
        self._changed = threading.Condition()
        self._scans = 0
        self._uffd = uffd
        self._pagemap_fd = -1

    @classmethod
    def arm(
        cls, pid: int, ranges: Sequence[AddressRange], *, avoid_threads: Collection[int] = ()
    ) -> WriteTracker:
        """Track writes to *ranges* of process *pid* from now on; every page starts as not written.

        Blocks: some 10 ms and another 10 ms per GiB. Raises as `begin` and `protect` do.
        """
        tracker = cls.begin(pid, ranges, avoid_threads=avoid_threads)
        try:
            for addresses in ranges:
                tracker.protect(addresses)
        except BaseException:
            tracker.close()
            raise
        return tracker

    @classmethod
    def begin(
        cls, pid: int, ranges: Sequence[AddressRange], *, avoid_threads: Collection[int] = ()
    ) -> WriteTracker:
        """Make ready to track writes to *ranges* of process *pid*.

        Every page starts as written, and is reported so by the first scan, unless it is protected
        before. Blocks for some 10 ms. *avoid_threads* are not to be stopped: the vCPU threads.
        Raises RefusedError when the process is being traced, or a userfaultfd is already on the
        ranges, or permission is missing; KernelFeatureError when the kernel cannot do it. After an
        error nothing is left in the process, except when the error says that it may have ended.
        """
        uffd, held_ns = take_userfaultfd(pid, avoid_threads)
        tracker = cls(pid, uffd, ranges, held_ns)
        try:
            tracker._register()
            tracker._pagemap_fd = _open_pagemap(pid)
        except BaseException:
            tracker.close()
            raise
        return tracker

    def protect(
        self, addresses: AddressRange, but: PageSet | None = None, first_page: int = 0
    ) -> None:
        """Let the pages of *addresses* count as not written, except those in *but*.

        *first_page* is the page in *but* that *addresses* begins with. For what nobody has
        scanned yet: what was written before is forgotten. Blocks: 10 ms per GiB, and a system call
        for each run of *but*. Raises OSError.
        """
        if but is None:
            but = PageSet((addresses.end - addresses.start) // PAGE_BYTES)
        error = lib.pf_uffd_protect(
            self._uffd, addresses.start, addresses.end, but._native, first_page
        )
        check(error, f"write-protect {addresses.start:#x}-{addresses.end:#x}")

    def scan(self, addresses: AddressRange, into: PageSet, first_page: int) -> int:
        """Add the pages written since the last scan to *into*, and clear their marks.

        *first_page* is the page in *into* that *addresses* begins with. Returns how many pages were
        found written, those already in *into* included. Several threads may scan at once, into the
        same set too, when what each adds begins at a multiple of 64 pages. Raises TrackingLostError
        when the process is gone or its memory is not tracked any more; some marks may then have
        been cleared for nothing.
        """
        found = ffi.new("uint64_t *")
        with self._open_for_a_scan() as pagemap_fd:
            error = lib.pf_scan_written(
                pagemap_fd,
                addresses.start,
                addresses.end,
                into._native,
                first_page,
                found,
            )
        if error in (errno.EPERM, errno.ESRCH):
            why = (
                "QEMU has ended"
                if error == errno.ESRCH
                else "a RAM block was mapped anew, or another program took the userfaultfd off"
            )
            raise TrackingLostError(
                f"writes of process {self.pid} are not tracked any more: {why}",
                advice="start the migration again",
            )
        check(error, "scan for written pages")
        return int(found[0])

    def close(self) -> None:
        """Take the protection off the process's memory, once no scan runs. Idempotent. Some 4 ms
        per GiB."""
        with self._changed:
            self._changed.wait_for(lambda: not self._scans)
            if self._uffd < 0:
                return
            for addresses in self._ranges:
                # The range may be gone by now, with the process; closing does the same.
                lib.pf_uffd_disarm(self._uffd, addresses.start, addresses.end)
            os.close(self._uffd)
            self._uffd = -1
            if self._pagemap_fd >= 0:
                os.close(self._pagemap_fd)
                self._pagemap_fd = -1

    @contextmanager
    def _open_for_a_scan(self) -> Iterator[int]:
        """The pagemap's descriptor, which is not closed within the block."""
        with self._changed:
            if self._pagemap_fd < 0:
                raise TrackingLostError("write tracking has ended", advice="start over")
            self._scans += 1
        try:
            yield self._pagemap_fd
        finally:
            with self._changed:
                self._scans -= 1
                self._changed.notify_all()

    def _register(self) -> None:
        features = ffi.new("uint64_t *")
        error = lib.pf_uffd_enable(self._uffd, features)
        if error == errno.EINVAL:
            raise KernelFeatureError(
                "this kernel's userfaultfd has no asynchronous write protection of shared memory",
                advice=NEEDS_LINUX_ADVICE,
            )
        check(error, "set up userfaultfd")
        for addresses in self._ranges:
            error = lib.pf_uffd_register(self._uffd, addresses.start, addresses.end)
            if error == errno.EBUSY:
                raise RefusedError(
                    f"process {self.pid} has a userfaultfd on its RAM already",
                    advice="end what uses it: another migration, a background snapshot,"
                    " or post-copy",
                )
            check(error, f"register {addresses.start:#x}-{addresses.end:#x}")


def mapped_pages(pid: int, addresses: AddressRange, into: PageSet, first_page: int) -> int:
    """Add the pages of *addresses* that the process's page tables map now; returns how many."""
    found = ffi.new("uint64_t *")
    fd = _open_pagemap(pid)
    try:
        error = lib.pf_scan_present(
            fd, addresses.start, addresses.end, into._native, first_page, found
        )
    finally:
        os.close(fd)
    if error == errno.ENOTTY:
        raise KernelFeatureError("this kernel has no PAGEMAP_SCAN", advice=NEEDS_LINUX_ADVICE)
    check(error, "scan for mapped pages")
    return int(found[0])


def uffd_armed_ranges(pid: int) -> list[AddressRange]:
    """The ranges of process *pid* that some userfaultfd is registered on (VmFlags uw, um, ui)."""
    return [
        AddressRange(detail.entry.start, detail.entry.end)
        for detail in procfs.smaps_of(pid)
        if detail.flags & {"uw", "um", "ui"}
    ]


def _open_pagemap(pid: int) -> int:
    try:
        return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise RefusedError(
            f"the page tables of process {pid} may not be read", advice=PRIVILEGE_ADVICE
        ) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TrackingLostError(f"process {pid} has ended", advice="start the guest") from error
