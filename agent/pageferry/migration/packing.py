"""Packing on one data connection: whether, and how long it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pageferry.kernel.mapping import RamMapping
from pageferry.kernel.packing import Packer
from pageferry.kernel.pageset import Runs
from pageferry.migration.feeder import BATCH_PAGES
from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.parameters import MigrationParameters
from pageferry.policy import packing as policy
from pageferry.policy.packing import Compression, PackingState


@dataclass(slots=True)
class PackingSettings:
    """What the operator wants; shared by all connections, and changed while they run."""

    mode: Compression
    level: int

    @classmethod
    def of(cls, parameters: MigrationParameters) -> PackingSettings:
        """As in *parameters*."""
        return cls(Compression(parameters.compression), parameters.compression_level)

    def change(self, parameters: MigrationParameters) -> None:
        """From the next batch on as in *parameters*."""
        self.mode = Compression(parameters.compression)
        self.level = parameters.compression_level


class BatchPacking:
    """Decides for each batch of one connection, and keeps the measurements. One thread's."""

    def __init__(self, settings: PackingSettings) -> None:
        self._settings = settings
        self._state = PackingState()
        self._packer: Packer | None = None

    def try_pack(self, mapping: RamMapping, runs: Runs) -> memoryview | None:
        """The batch packed, until the next call; None when it is to be sent as it is."""
        mode, level = self._settings.mode, self._settings.level
        if not policy.packs_next(mode, self._state):
            return None
        if self._packer is None:
            self._packer = Packer(BATCH_PAGES)
        began_ns = time.monotonic_ns()
        packed = self._packer.pack(mapping, runs, level)
        plain_bytes = runs.pages * PAGE_BYTES
        self._state = policy.after_packing(
            self._state, plain_bytes, len(packed), time.monotonic_ns() - began_ns
        )
        return packed if policy.is_worthwhile(plain_bytes, len(packed)) else None

    def sent_plain(self, sent_bytes: int, send_ns: int) -> None:
        """A batch went out as it is."""
        self._state = policy.after_plain(self._state, sent_bytes, send_ns)

    def sent_packed(self, packed_bytes: int, send_ns: int) -> None:
        """A packed batch went out."""
        self._state = policy.after_sending_packed(self._state, packed_bytes, send_ns)
