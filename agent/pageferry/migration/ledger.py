"""Which pages of the guest's RAM exist, kept up to date at the cost of what changed.

Listing all data of a file walks every page (9 ms a GiB), too long while the guest is stopped. But
pages come into being by being written, which tracking reports, or by a read of a hole; and they go
by being punched (balloon, free page reporting), which nothing reports. So the set is kept: what was
written is added, and the kernel's own count of the file's pages (st_blocks, one call) tells whether
anything else has happened. Only then is the file looked at again: first the written pages, and the
whole of it only while the guest runs or where that is quick.

What the count cannot see is that as many pages were punched as were read into being, none of them
written. Then the destination keeps the last contents of a page that the guest gave back. The guest
may not mind: virtio leaves to the device whether a page that was given back keeps its contents
until it is written again (1.2, 5.5.6), and it is as if the device had not got round to it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pageferry.kernel.pageset import PageSet
from pageferry.kernel.residency import allocated_pages, data_among, data_pages
from pageferry.migration.guest_ram import CarriedBlock

QUICK_LISTING_NS = 10_000_000
"""A whole listing that took no longer than this may be made while the guest is stopped."""


class DataLedger:
    """The data pages of all blocks. Every method blocks: call them in a thread, one at a time."""

    def __init__(self, blocks: Sequence[CarriedBlock]) -> None:
        self._blocks = blocks
        self._files: dict[tuple[int, int], list[int]] = {}
        for index, carried in enumerate(blocks):
            self._files.setdefault((carried.device, carried.inode), []).append(index)
        self._beside: dict[tuple[int, int], int | None] = {}
        self.listing_ns = 0
        """How long the last whole listing took."""
        self.data: list[PageSet] = []
        """The pages that exist, one set a block; holes are the rest. Not to be changed."""

    def list_all(self) -> None:
        """Look at every page. Costs by the size of the guest."""
        began_ns = time.monotonic_ns()
        before = {key: self._allocated(key) for key in self._files}
        self.data = [data_pages(carried.mapping) for carried in self._blocks]
        for key, indices in self._files.items():
            listed = sum(self.data[index].count() for index in indices)
            allocated = self._allocated(key)
            # Changed meanwhile: nothing is known about the rest until the next listing.
            self._beside[key] = allocated - listed if allocated == before[key] else None
        self.listing_ns = time.monotonic_ns() - began_ns

    def update(self, written: Sequence[PageSet], *, whole: bool | None) -> bool:
        """Take in what was written since the last call. Returns whether the count fits.

        *written* (one set a block) is reduced to pages that exist where the count does not fit.
        *whole*: whether everything may be listed then; None: only where that is quick.
        """
        for pages, new in zip(self.data, written, strict=True):
            pages.add_all(new)
        if self._count_fits():
            return True
        for carried, pages, new in zip(self._blocks, self.data, written, strict=True):
            if new:
                present = data_among(carried.mapping, new)
                pages.discard_all(new)
                pages.add_all(present)
                new.keep_all(present)
        if self._count_fits():
            return True
        if whole is None:
            whole = self.listing_ns <= QUICK_LISTING_NS
        if whole:
            self.list_all()
            for pages, new in zip(self.data, written, strict=True):
                new.keep_all(pages)
        return False

    def _count_fits(self) -> bool:
        return all(
            self._beside.get(key) is not None
            and self._allocated(key) - sum(self.data[index].count() for index in indices)
            == self._beside[key]
            for key, indices in self._files.items()
        )

    def _allocated(self, key: tuple[int, int]) -> int:
        return allocated_pages(self._blocks[self._files[key][0]].mapping)
