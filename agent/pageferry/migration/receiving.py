"""Receiving guest RAM: one thread per data connection places pages in the destination's RAM files.

Everything a frame names is checked against the RAM blocks that this side read from its own QEMU,
before a byte of payload is taken. Pages go through a small buffer, which stays in the CPU's cache,
into the file: new ones side by side (`kernel.placing`), others with pwrite. Either spares the fault
that the first touch of each page through a mapping costs. This process sits in the destination
QEMU's memory cgroup, so the pages are charged to the guest.

Cold pages are paged out again at once: they are mapped for it, since MADV_PAGEOUT only takes pages
that the caller maps. Those that stayed (not yet on the LRU list, or under writeback) get a second
try at the end of the round.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence

from pageferry.kernel import paging
from pageferry.kernel.pageset import PageSet, Runs
from pageferry.kernel.placing import Placer, placer_for
from pageferry.kernel.residency import ResidencyReader
from pageferry.kernel.scheduling import ThreadPriority
from pageferry.migration.guest_ram import CarriedBlock
from pageferry.migration.intake import Intake
from pageferry.migration.progress import Progress
from pageferry.model.errors import PageferryError, RemoteProtocolError
from pageferry.net.data import DataSocket, TlsSocket, read_frame_head
from pageferry.policy.rounds import FIRST_PASS_ROUNDS
from pageferry.wire.ledger import RoundLedger
from pageferry.wire.messages import Barrier, Holes, Packed, Pages, RoundEnd, Zeros

TLS_TIMEOUT_S = 30.0
"""The source begins TLS on all its connections, one after the other, once all are attached."""

RoundMoved = Callable[[], None]


class RamReceiver:
    """Places what arrives on the data connections. One instance, one thread per connection."""

    def __init__(
        self,
        blocks: Sequence[CarriedBlock],
        reader: ResidencyReader,
        progress: Progress,
        channels: int,
    ) -> None:
        self._blocks = blocks
        self._reader = reader
        self._progress = progress
        self._lock = threading.Lock()
        self._sockets: list[DataSocket] = []
        self._stopped = False
        self._cold = [PageSet(carried.block.pages) for carried in blocks]
        self._ledger = RoundLedger(channels)
        self._placers: list[Placer | None] = [None for _carried in blocks]

    def clear(self) -> None:
        """Give back all memory of the blocks, so that whatever is not sent is a hole.

        QEMU has put its ROMs and boot images into RAM by now; none of that is the guest's.
        """
        for carried in self._blocks:
            whole = PageSet(carried.block.pages)
            whole.add(0, carried.block.pages)
            paging.punch(carried.mapping.fd, carried.mapping.file_offset_bytes, whole.runs())
        self._placers = [placer_for(carried.mapping) for carried in self._blocks]

    def serve(self, sock: DataSocket, channel: int, moved: RoundMoved) -> None:
        """Receive on one connection until it ends or `stop` is called. Blocks; runs in a thread.

        Calls *moved* when a round has been placed whole on this connection. Raises
        RemoteProtocolError, PeerLostError, or OSError when memory cannot be had.
        """
        with self._lock:
            self._sockets.append(sock)
            if self._stopped:
                return
        if isinstance(sock, TlsSocket):
            sock.begin(TLS_TIMEOUT_S)
        intake, priority = Intake(sock), ThreadPriority()
        while True:
            message = read_frame_head(sock)
            if isinstance(message, Barrier):
                priority.set_polite(False)
                with self._lock:
                    self._ledger.barrier(channel, message)
                moved()
            elif isinstance(message, Pages | Packed | Zeros | Holes):
                self._check_round(message)
                if isinstance(message, Pages | Packed):
                    priority.set_polite(message.round <= FIRST_PASS_ROUNDS)
                self._place(message, intake)
                with self._lock:
                    self._ledger.frame(channel, message)
            else:
                raise RemoteProtocolError(f"{message.name} does not belong on a data connection")

    def round_ends(self, end: RoundEnd) -> None:
        """The source says how many frames the round had. Raises RemoteProtocolError."""
        with self._lock:
            self._ledger.round_end(end)

    def round_is_placed(self) -> bool:
        """Whether every page of the round is in its place."""
        with self._lock:
            return self._ledger.is_complete

    def next_round(self) -> int:
        """Close the round that is placed. Returns the pages of it that were to be paged out and
        are still in."""
        kept = self._page_out_cold()
        with self._lock:
            self._ledger.next_round()
            if self._ledger.round > FIRST_PASS_ROUNDS:
                self._placers = [None for _carried in self._blocks]
        return kept

    def _page_out_cold(self) -> int:
        kept = 0
        for carried, cold in zip(self._blocks, self._cold, strict=True):
            runs = cold.runs()
            if runs.pages:
                kept += self._page_out(carried, runs)
            cold.clear()
        return kept

    def stop(self) -> None:
        """Make all threads end soon, from any thread."""
        with self._lock:
            self._stopped = True
            sockets = list(self._sockets)
        for sock in sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _check_round(self, message: Pages | Packed | Zeros | Holes) -> None:
        """Before anything is placed: a frame of another round could undo a newer page."""
        with self._lock:
            number = self._ledger.round
        if message.round != number:
            raise RemoteProtocolError(f"a frame of round {message.round} came in round {number}")

    def _place(self, message: Pages | Packed | Zeros | Holes, intake: Intake) -> None:
        carried, runs = self._checked(message)
        if isinstance(message, Pages | Packed):
            self._place_pages(carried, runs, message, intake)
            return
        paging.punch(carried.mapping.fd, carried.mapping.file_offset_bytes, runs)
        if isinstance(message, Zeros):
            self._progress.received(0, runs.pages)
        else:
            self._progress.punched_pages += runs.pages

    def _checked(self, message: Pages | Packed | Zeros | Holes) -> tuple[CarriedBlock, Runs]:
        if message.block >= len(self._blocks):
            raise RemoteProtocolError(
                f"a frame names RAM block {message.block} of {len(self._blocks)}"
            )
        carried = self._blocks[message.block]
        try:
            return carried, Runs.from_list(list(message.runs), carried.block.pages)
        except ValueError as error:
            raise RemoteProtocolError(
                f"a frame's pages do not lie within RAM block {carried.block.name}: {error}"
            ) from error

    def _place_pages(
        self, carried: CarriedBlock, runs: Runs, message: Pages | Packed, intake: Intake
    ) -> None:
        if message.round > 1:
            self._forget_swapped(carried, runs)
        # Cold ones are mapped anew to be paged out: by copying, an entry would be dirty.
        placer = None if message.cold else self._placers[message.block]
        intake.take(message, carried.mapping, runs, placer)
        self._progress.received(runs.pages, 0)
        if message.cold:
            kept = self._page_out(carried, runs)
            if kept:
                with self._lock:
                    self._cold[message.block].add_runs(runs)
            self._progress.paged(0, runs.pages - kept, kept)

    def _forget_swapped(self, carried: CarriedBlock, runs: Runs) -> None:
        """Free the swap slots of pages that are about to be written whole.

        Writing to a swapped shmem page reads it in first, though nothing of it is needed.
        """
        evicted = self._reader.evicted_in(carried.mapping, runs)
        if evicted.pages:
            paging.punch(carried.mapping.fd, carried.mapping.file_offset_bytes, evicted)

    @staticmethod
    def _page_out(carried: CarriedBlock, runs: Runs) -> int:
        return paging.put_out(carried.mapping, runs, map_first=True)


def out_of_memory(error: OSError) -> PageferryError:
    """What an OSError while placing pages means to the operator."""
    return PageferryError(
        f"guest memory cannot be placed on the destination: {error.strerror or error}",
        advice="give the destination's memory cgroup, /dev/shm or swap more room",
    )
