"""Real QEMUs of very different sizes with the same little memory in use, carried by pageferry."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pageferry.testing.bench.orchestrating import orchestrated_carry
from pageferry.testing.bench.scale.standin import status_bytes
from pageferry.testing.lab.carrying import daemons_for
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.daemons import LabDaemon
from pageferry.testing.lab.guests import GuestPlan
from pageferry.testing.lab.measuring import measure
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.settled import settled_pair

MIB = 1024**2
INTERVAL_S = 0.02
TIMEOUT_S = 120.0


def carry_of_size(binary: QemuBinary, ram_gib: int) -> dict[str, float]:
    """Carry a guest of this size that uses 80 MiB: times in ms, memory in MiB, by name.

    Raises LabError when its QEMU does not start, or the guest does not arrive whole.
    """
    plan = GuestPlan(binary, ram_mib=ram_gib * 1024, cold_mib=64, hot_mib=16, zero_mib=0, pace=1)
    with settled_pair(plan) as guest, daemons_for(guest) as (source, destination):
        carry = orchestrated_carry(source, destination, {}, TIMEOUT_S)
        qemu_pid = guest.source.pid
        with _peaks((source, destination), qemu_pid) as peaks:
            found = measure(guest, carry, 0.5, 0.5)
        if not found.verified:
            raise LabError(f"a guest of {ram_gib} GiB was not carried: {found.outcome.error}")
        return {
            "size_gib": float(ram_gib),
            "total_ms": float(found.outcome.total_ms or 0),
            "downtime_ms": float(found.outcome.downtime_ms or 0),
            "source_worker_mib": peaks.worker_bytes["source"] / MIB,
            "destination_worker_mib": peaks.worker_bytes["destination"] / MIB,
            "worker_page_tables_mib": peaks.worker_table_bytes / MIB,
            "qemu_page_tables_mib": peaks.qemu_table_bytes / MIB,
        }


@dataclass(slots=True)
class _Peaks:
    """The most memory that was seen: what the workers allocated (the RAM that they map is not
    theirs), and page tables of a worker and of the source's QEMU.
    """

    worker_bytes: dict[str, int]
    worker_table_bytes: int = 0
    qemu_table_bytes: int = 0


@contextlib.contextmanager
def _peaks(daemons: tuple[LabDaemon, LabDaemon], qemu_pid: int) -> Iterator[_Peaks]:
    peaks, ended = _Peaks({daemon.name: 0 for daemon in daemons}), threading.Event()

    def look() -> None:
        while not ended.is_set():
            for daemon in daemons:
                for pid in daemon.workers():
                    seen = status_bytes(pid, "RssAnon")
                    peaks.worker_bytes[daemon.name] = max(seen, peaks.worker_bytes[daemon.name])
                    seen = status_bytes(pid, "VmPTE")
                    peaks.worker_table_bytes = max(seen, peaks.worker_table_bytes)
            peaks.qemu_table_bytes = max(peaks.qemu_table_bytes, status_bytes(qemu_pid, "VmPTE"))
            time.sleep(INTERVAL_S)

    thread = threading.Thread(target=look, name="peaks")
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()
