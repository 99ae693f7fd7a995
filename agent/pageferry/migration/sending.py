"""Sending guest RAM: every pass of the source, cold, resident and rounds alike.

Whatever a pass was told about its pages may be old by the time a batch goes out, so each batch asks
the kernel once more which of its pages lie in swap just then. Those are paged out again after
sending and marked cold on the wire; all others stay as they are. In this way a page that was
evicted while it waited is not left resident, and a page that the guest woke up is not put to sleep.

Threads: one per channel, started for a pass and joined at its end. They share the feeder, which
hands out batches, and the ledgers (`sent`, `settled`), which a lock guards. The first error stops
all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from pageferry.kernel import paging
from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.pageset import PageSet, Runs, note_sent
from pageferry.kernel.residency import ResidencyReader
from pageferry.kernel.scheduling import ThreadPriority
from pageferry.migration.channel import Channel
from pageferry.migration.feeder import (
    BATCH_PAGES,
    Batch,
    ColdFeeder,
    Feeder,
    batches_of,
    cold_batch_pages,
)
from pageferry.migration.guest_ram import CarriedBlock
from pageferry.migration.limiter import Limiter
from pageferry.migration.progress import Progress
from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.errors import MigrationFailedError
from pageferry.policy.bandwidth import smooth_batch_pages
from pageferry.policy.rounds import FIRST_PASS_ROUNDS

HEAD_BYTES = 64
RUN_BYTES = 6
"""What a frame's head takes on the wire, and each run in it, near enough for the bandwidth."""


class RamSender:
    """Sends pages of the carried blocks over all channels and remembers what the destination has.

    ``sent[block]``: pages whose contents the destination holds. ``settled[block]``: those, and the
    pages that the destination knows to be zero. All methods but `stop` block and are called from
    one thread at a time.
    """

    def __init__(
        self,
        blocks: Sequence[CarriedBlock],
        channels: Sequence[Channel],
        reader: ResidencyReader,
        progress: Progress,
    ) -> None:
        self._blocks = blocks
        self._channels = channels
        self._reader = reader
        self._progress = progress
        self._lock = threading.Lock()
        self._feeder: Feeder | None = None
        self._stopped = False
        self.bandwidth = Limiter()
        """What all channels together may use."""
        self.swap_bandwidth = Limiter()
        """What the cold pass may page in."""
        self.sent = [PageSet(carried.block.pages) for carried in blocks]
        self.settled = [PageSet(carried.block.pages) for carried in blocks]

    def send_cold(
        self, round_number: int, order: Iterable[tuple[int, Runs]], window_bytes: int
    ) -> None:
        """The cold pass: page in, send and page out *order* (block, runs), windowed.

        Raises PeerLostError, or MigrationFailedError when a page cannot be read.
        """
        size = cold_batch_pages(window_bytes, len(self._channels))
        batches = (
            Batch(block, self._blocks[block].mapping, piece, read_ahead=True)
            for block, runs in order
            for piece in _pieces(runs, lambda: self._smooth(size))
        )
        feeder = ColdFeeder(batches, window_bytes, self.swap_bandwidth)
        self._run(feeder, round_number)

    def send_pages(self, round_number: int, pages: Sequence[PageSet]) -> None:
        """Send *pages* (one set a block) in the order of their offsets.

        Raises as `send_cold` does.
        """
        batches = (
            batch
            for block, wanted in enumerate(pages)
            for batch in batches_of(
                block,
                self._blocks[block].mapping,
                wanted,
                lambda: self._smooth(BATCH_PAGES),
            )
        )
        self._run(Feeder(batches), round_number)

    def send_holes(self, round_number: int, holes: Sequence[PageSet]) -> None:
        """Tell the destination which of the pages it has are holes here now."""
        channel = self._channels[0]
        for block, pages in enumerate(holes):
            for batch in batches_of(block, self._blocks[block].mapping, pages, lambda: BATCH_PAGES):
                channel.holes(block, round_number, batch.runs)
                self._progress.punched_pages += batch.runs.pages
            self.sent[block].discard_all(pages)
            self.settled[block].discard_all(pages)

    def finish_round(self, round_number: int) -> list[int]:
        """Send the barrier on every channel. Returns the frames that each had."""
        return [channel.barrier(round_number) for channel in self._channels]

    def set_window(self, window_bytes: int) -> None:
        """Change the page-in window of the cold pass that runs, if one does. From any thread."""
        feeder = self._feeder
        if isinstance(feeder, ColdFeeder):
            feeder.set_window(window_bytes)

    @property
    def pages_in(self) -> int:
        """Pages that are in for the cold pass just now."""
        feeder = self._feeder
        return feeder.pages_in if isinstance(feeder, ColdFeeder) else 0

    @contextmanager
    def no_page_ins(self) -> Iterator[None]:
        """Within it the cold pass starts no reads; what is in already goes out."""
        feeder = self._feeder
        if not isinstance(feeder, ColdFeeder):
            yield
            return
        feeder.hold(True)
        try:
            yield
        finally:
            feeder.hold(False)

    def stop(self) -> None:
        """End a pass from another thread, for good: no channel can be used afterwards."""
        self._stopped = True
        self.bandwidth.stop()
        feeder = self._feeder
        if feeder is not None:
            feeder.stop()
        for channel in self._channels:
            channel.shutdown()

    def _run(self, feeder: Feeder, round_number: int) -> None:
        self._feeder = feeder
        if self._stopped:
            feeder.stop()
        errors: list[Exception] = []
        threads = [
            threading.Thread(
                target=self._drain_feeder,
                args=(feeder, channel, round_number, errors),
                name=f"send-{channel.index}",
            )
            for channel in self._channels
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._feeder = None
        if errors:
            raise errors[0]

    def _drain_feeder(
        self, feeder: Feeder, channel: Channel, round_number: int, errors: list[Exception]
    ) -> None:
        priority = ThreadPriority()
        try:
            while (batch := feeder.next()) is not None:
                priority.set_polite(round_number <= FIRST_PASS_ROUNDS)
                self._send_batch(batch, channel, round_number)
                feeder.done(batch)
        except Exception as error:  # noqa: BLE001 - raised again by the thread that joins
            errors.append(error)
            feeder.stop()

    def _send_batch(self, batch: Batch, channel: Channel, round_number: int) -> None:
        if batch.read_ahead and not self._reader.sees_swap_cache:
            # It would call resident what has just been read ahead, and leave all of it in. What the
            # guest has woken up meanwhile is mapped by it, and is not paged out for that.
            evicted = batch.runs
        else:
            evicted = self._reader.evicted_in(batch.mapping, batch.runs)
        if evicted.pages:
            self._send_swapped(batch, evicted, channel, round_number)
        if evicted.pages < batch.runs.pages:
            awake = batch.runs.minus(evicted) if evicted.pages else batch.runs
            self._send_resident(batch, awake, channel, round_number)

    def _smooth(self, most_pages: int) -> int:
        """Pages for the next batch, so that a bandwidth that is limited is used smoothly."""
        wire = smooth_batch_pages(self.bandwidth.bytes_per_s, most_pages)
        return min(wire, smooth_batch_pages(self.swap_bandwidth.bytes_per_s, most_pages))

    def _send_swapped(self, batch: Batch, runs: Runs, channel: Channel, round_number: int) -> None:
        mapping = batch.mapping
        try:
            parts = _bring_in(mapping, runs, swapped=True)
            self._send_parts(batch.block, mapping, parts, channel, round_number, cold=True)
        finally:
            # Also when the connection broke: the guest's residency is to be as it was.
            kept = paging.put_out(mapping, runs)
            self._progress.paged(runs.pages, runs.pages - kept, kept)

    def _send_resident(self, batch: Batch, runs: Runs, channel: Channel, round_number: int) -> None:
        mapping = batch.mapping
        try:
            parts = _bring_in(mapping, runs, swapped=False)
            self._send_parts(batch.block, mapping, parts, channel, round_number, cold=False)
        finally:
            paging.drop(mapping, runs)

    def _send_parts(
        self,
        block: int,
        mapping: RamMapping,
        parts: tuple[Runs, Runs],
        channel: Channel,
        round_number: int,
        *,
        cold: bool,
    ) -> None:
        nonzero, zero = parts
        saved_bytes = 0
        if nonzero.pages:
            # How much goes is known only when it has been packed: wait for what went before.
            self.bandwidth.pass_through(0)
            sent_bytes = channel.pages(block, mapping, round_number, nonzero, cold=cold)
            self.bandwidth.take(sent_bytes + HEAD_BYTES + RUN_BYTES * len(nonzero))
            saved_bytes = nonzero.pages * PAGE_BYTES - sent_bytes
        if zero.pages:
            channel.zeros(block, round_number, zero)
        with self._lock:
            note_sent(self.sent[block], self.settled[block], nonzero, zero)
        self._progress.sent(nonzero.pages, zero.pages, saved_bytes)


def _pieces(runs: Runs, batch_pages: Callable[[], int]) -> Iterator[Runs]:
    first = 0
    while first < runs.pages:
        piece = runs.cut(first, batch_pages())
        first += piece.pages
        yield piece


def _bring_in(mapping: RamMapping, runs: Runs, *, swapped: bool) -> tuple[Runs, Runs]:
    """What holds something and what is zero; a page that cannot be read ends the migration, never
    the guest."""
    try:
        return paging.bring_in(mapping, runs, swapped=swapped)
    except OSError as error:
        raise MigrationFailedError(
            f"guest memory could not be read: {error.strerror or error} (a swap device failing?)",
            advice="look for I/O errors of the swap device in the kernel's log",
        ) from error
