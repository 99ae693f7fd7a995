"""QEMU's own migration of the same guest, measured in the same way, to compare with.

Take QEMU 10.0: before 9.0 QEMU loses dirty pages of guests under TCG.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pageferry.testing.lab.cleanup import orderly_termination
from pageferry.testing.lab.guests import FreestandingGuest, GuestPlan
from pageferry.testing.lab.measuring import Measurement, Outcome, measure
from pageferry.testing.lab.packages import qemu_10
from pageferry.testing.lab.qemus import LabQemu
from pageferry.testing.lab.settled import overcommitted_plan, resident_plan, settled_pair
from pageferry.testing.lab.swap import some_swap

MIB = 1024 * 1024

TIMEOUT_S = 120.0
POLL_S = 0.05

UNLIMITED_BYTES_PER_S = 1 << 40
"""QEMU's default of 128 MiB/s would measure nothing but itself."""


@dataclass(frozen=True, slots=True)
class QemuMode:
    """One way of QEMU's own migration. `multifd_channels` 0: the default single stream.

    `compression`: a value of ``multifd-compression``. `auto_converge`: throttle a guest that writes
    too fast.
    """

    name: str
    multifd_channels: int = 0
    compression: str | None = None
    auto_converge: bool = False


DEFAULT = QemuMode("qemu")
MULTIFD = QemuMode("qemu-multifd", multifd_channels=2)


def qemu_carry(
    guest: FreestandingGuest,
    mode: QemuMode,
    uri: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Callable[[], Outcome]:
    """QEMU's own migration of this guest, as :func:`measure` wants it.

    `uri` None: over a UNIX socket. A migration that takes longer than `timeout_s` is cancelled: the
    guest runs on where it was.
    """
    destination = guest.destination
    if destination is None:
        raise ValueError("start the destination first")

    def carry() -> Outcome:
        address = uri or f"unix:{guest.folder}/migration.sock"
        _prepare(destination, mode)
        _prepare(guest.source, mode)
        destination.monitor.execute("migrate-incoming", uri=address)
        guest.source.monitor.execute("migrate", uri=address)
        info = _until_over(guest.source, timeout_s)
        if info["status"] != "completed":
            return Outcome(False, error=str(info.get("error-desc", info["status"])))
        _until_over(destination, TIMEOUT_S)
        destination.monitor.execute("cont")
        ram = info["ram"]
        return Outcome(
            True,
            total_ms=info["total-time"],
            downtime_ms=info["downtime"],
            rounds=ram["dirty-sync-count"],
        )

    return carry


def measure_qemu(plan: GuestPlan, mode: QemuMode) -> Measurement:
    """Start a guest, let QEMU migrate it, and measure. Swap must be on."""
    with settled_pair(plan) as guest:
        return measure(guest, qemu_carry(guest, mode))


def _prepare(qemu: LabQemu, mode: QemuMode) -> None:
    capabilities = [{"capability": "events", "state": True}]
    parameters: dict[str, object] = {"max_bandwidth": UNLIMITED_BYTES_PER_S}
    if mode.auto_converge:
        capabilities.append({"capability": "auto-converge", "state": True})
    if mode.compression is not None:
        parameters["multifd_compression"] = mode.compression
    if mode.multifd_channels:
        capabilities.append({"capability": "multifd", "state": True})
        parameters["multifd_channels"] = mode.multifd_channels
    qemu.monitor.execute("migrate-set-capabilities", capabilities=capabilities)
    qemu.monitor.execute("migrate-set-parameters", **parameters)


def _until_over(qemu: LabQemu, timeout_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        info: dict[str, Any] = qemu.monitor.execute("query-migrate")
        if info.get("status") in ("completed", "failed", "cancelled"):
            return info
        if time.monotonic() > deadline:
            _cancel(qemu)
            return {"status": "failed", "error-desc": f"not over after {timeout_s:g} s"}
        time.sleep(POLL_S)


def _cancel(qemu: LabQemu) -> None:
    qemu.monitor.execute("migrate_cancel")
    for _try in range(int(TIMEOUT_S / POLL_S)):
        if qemu.monitor.execute("query-migrate").get("status") != "cancelling":
            return
        time.sleep(POLL_S)


def as_json(found: Measurement) -> dict[str, object]:
    """A measurement as a flat map, in MiB, ms and µs."""
    p99 = found.hot_p99_us
    ratio = None
    if p99["before"] and p99["during"]:
        ratio = round(p99["during"] / p99["before"], 2)
    return {
        "completed": found.outcome.completed,
        "error": found.outcome.error,
        "total_s": round(found.total_s, 2),
        "downtime_ms": found.outcome.downtime_ms,
        "rounds": found.outcome.rounds,
        "cold_mib": found.cold_bytes // MIB,
        "swap_in_mib": found.swap.in_bytes // MIB,
        "swap_out_mib": found.swap.out_bytes // MIB,
        "vcpu_major_faults": found.vcpu_major_faults,
        "hot_p99_us": p99,
        "hot_p99_ratio": ratio,
        "disturbed_s": round(found.disturbed_s, 1),
        "source_before": found.before.source.as_dict(),
        "source_after": found.after.source.as_dict(),
        "destination_after": found.after.destination.as_dict(),
        "source_growth_mib": round(found.source_growth_bytes / MIB, 1),
        "verified": found.verified,
    }


def main() -> int:
    """Measure QEMU's own migration and print one JSON line for each mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resident", action="store_true", help="a guest that is all resident")
    resident = parser.parse_args().resident
    with orderly_termination(), some_swap():
        plan = resident_plan(qemu_10()) if resident else overcommitted_plan(qemu_10())
        for mode in (DEFAULT, MULTIFD):
            print(json.dumps({"mode": mode.name, **as_json(measure_qemu(plan, mode))}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
