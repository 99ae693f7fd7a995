"""A migration of a Linux guest that is held after the commit, to compare the RAM of both sides.

Both QEMUs stand still then: the source for good, the destination until the guest may run there. So
whatever differs is what the destination would have run with.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.phase import DestinationPhase
from pageferry.testing.faults import ENABLE_VARIABLE, ENABLED, FAULTS_VARIABLE, in_phase
from pageferry.testing.lab.daemons import LabDaemon, MigrateResult, run_daemon_pair
from pageferry.testing.lab.disks import STAMP, salt_of
from pageferry.testing.lab.linux_guest import DiskCheck, LinuxGuest

COMPARED_BYTES = 1 << 20

HOLD = f"{in_phase(DestinationPhase.COMMITTED)}=stop"
"""The destination's worker stops when it may run the guest, and has not told QEMU yet."""

HELD_TIMEOUT_S = 90.0

MAX_ROUNDS = 10_000

OTHER = "other"
"""Pages that hold no block of a disk."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What came of it. ``stale``: pages that differ, by the disk of which the source holds a block
    there (or OTHER). ``checks``: what the guest found in its cache after it ran on."""

    info: Mapping[str, Any]
    stale: Counter[str]
    checks: dict[str, DiskCheck]

    @property
    def rounds(self) -> int:
        """Rounds, with the first pass and the last."""
        return int(self.info["ram"]["dirty-sync-count"])

    @property
    def drains(self) -> int:
        """Drains, with the one after arming."""
        return int(self.info["drains"]["count"])

    @property
    def longest_drain_ms(self) -> float:
        """The longest of them."""
        return float(self.info["drains"]["longest-ms"])


def carry_frozen(guest: LinuxGuest, broken: Mapping[str, int | None]) -> Carried:
    """Migrate the running guest to its destination, with these rules broken (None: without a
    number)."""
    assert guest.destination is not None
    words = [name if value is None else f"{name}={value}" for name, value in broken.items()]
    environment = {
        FAULTS_VARIABLE: ",".join([HOLD, *words]),
        ENABLE_VARIABLE: ENABLED,
    }
    with run_daemon_pair(
        guest.folder,
        {"guest": guest.source.qmp_path},
        {"guest": guest.destination.qmp_path},
        defaults={"max-rounds": MAX_ROUNDS},
        environment=environment,
    ) as (source, destination):
        with held_migration(source, destination) as finish:
            stale = differing_pages(guest)
        result = finish()
        assert result.status == 0, f"{result.reason}\n{source.log()}\n{destination.log()}"
        guest.command("stop")
        return Carried(result.final_info, stale, guest.check_disks())


@contextlib.contextmanager
def held_migration(
    source: LabDaemon, destination: LabDaemon
) -> Iterator[Callable[[], MigrateResult]]:
    """Within the block the migration is held; the value waits for its end."""
    results: list[MigrateResult] = []
    thread = threading.Thread(target=lambda: results.append(source.migrate("guest", destination)))
    thread.start()

    def finish() -> MigrateResult:
        thread.join()
        return results[0]

    worker = None
    try:
        worker = _stopped_worker(destination, thread)
        yield finish
    finally:
        if worker is not None:
            os.kill(worker, signal.SIGCONT)
        thread.join()


def differing_pages(guest: LinuxGuest) -> Counter[str]:
    """Pages of RAM that differ between both sides, by what the source has there."""
    assert guest.destination is not None
    names = {salt_of(disk.name): disk.name for disk in guest.plan.disks}
    found: Counter[str] = Counter()
    ours, theirs = guest.source.ram_descriptor(), guest.destination.ram_descriptor()
    # pread: a hole that is read through a mapping would become a page.
    for offset in range(0, os.fstat(ours).st_size, COMPARED_BYTES):
        here = os.pread(ours, COMPARED_BYTES, offset)
        there = os.pread(theirs, COMPARED_BYTES, offset)
        if here == there:
            continue
        for at in range(0, len(here), PAGE_BYTES):
            page = here[at : at + PAGE_BYTES]
            if page != there[at : at + PAGE_BYTES]:
                found[names.get(STAMP.unpack_from(page)[0], OTHER)] += 1
    return found


def _stopped_worker(destination: LabDaemon, thread: threading.Thread) -> int | None:
    """The destination's worker once it has stopped; None when the migration ended before."""
    deadline = time.monotonic() + HELD_TIMEOUT_S
    while thread.is_alive():
        for pid in destination.workers():
            if _state(pid) == "T":
                return pid
        if time.monotonic() > deadline:
            raise TimeoutError(f"no hold within {HELD_TIMEOUT_S} s: {destination.log()}")
        time.sleep(0.02)
    return None


def _state(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
