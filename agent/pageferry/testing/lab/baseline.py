"""QEMU's own migration of the same guest, measured in the same way, to compare with.

Take QEMU 10.0: before 9.0 QEMU loses dirty pages of guests under TCG.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pageferry.testing.lab.cleanup import orderly_termination
from pageferry.testing.lab.guests import FreestandingGuest, GuestPlan, freestanding_guest
from pageferry.testing.lab.measuring import Measurement, Outcome, measure
from pageferry.testing.lab.packages import QemuBinary, qemu_10
from pageferry.testing.lab.qemus import LabQemu
from pageferry.testing.lab.swap import some_swap

MIB = 1024 * 1024

OVERCOMMITTED_COLD_SHARE = 0.85
"""The cgroup stays at its limit, as on an overcommitted host: squeezing out more would leave room
that spares QEMU the thrashing.
"""

TIMEOUT_S = 120.0
POLL_S = 0.1

UNLIMITED_BYTES_PER_S = 1 << 40
"""QEMU's default of 128 MiB/s would measure nothing but itself."""


@dataclass(frozen=True, slots=True)
class QemuMode:
    """One way of QEMU's own migration. `multifd_channels` 0: the default single stream."""

    name: str
    multifd_channels: int = 0


DEFAULT = QemuMode("qemu")
MULTIFD = QemuMode("qemu-multifd", multifd_channels=2)


def overcommitted_plan(binary: QemuBinary) -> GuestPlan:
    """The guest of the comparison: 1 GiB, 640 MiB cold, 64 MiB hot, within 160 MiB."""
    return GuestPlan(binary, ram_mib=1024, cold_mib=640, hot_mib=64, zero_mib=16, limit_mib=160)


def resident_plan(binary: QemuBinary) -> GuestPlan:
    """A guest without a limit, all of whose 640 MiB stay resident: for throughput."""
    return replace(overcommitted_plan(binary), limit_mib=None)


@contextlib.contextmanager
def settled_pair(plan: GuestPlan) -> Iterator[FreestandingGuest]:
    """A guest that is settled (when it has a limit), its destination waiting."""
    with freestanding_guest(plan) as guest:
        guest.wait_ready()
        if plan.limit_mib is not None:
            guest.settle(OVERCOMMITTED_COLD_SHARE)
        guest.start_destination()
        yield guest


def qemu_carry(guest: FreestandingGuest, mode: QemuMode) -> Callable[[], Outcome]:
    """QEMU's own migration of this guest, as :func:`measure` wants it."""
    destination = guest.destination
    if destination is None:
        raise ValueError("start the destination first")

    def carry() -> Outcome:
        address = guest.folder / "migration.sock"
        _prepare(destination, mode)
        _prepare(guest.source, mode)
        destination.monitor.execute("migrate-incoming", uri=f"unix:{address}")
        guest.source.monitor.execute("migrate", uri=f"unix:{address}")
        info = _until_over(guest.source)
        if info["status"] != "completed":
            return Outcome(False, error=str(info.get("error-desc", info["status"])))
        _until_over(destination)
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
    if mode.multifd_channels:
        capabilities.append({"capability": "multifd", "state": True})
        parameters["multifd_channels"] = mode.multifd_channels
    qemu.monitor.execute("migrate-set-capabilities", capabilities=capabilities)
    qemu.monitor.execute("migrate-set-parameters", **parameters)


def _until_over(qemu: LabQemu) -> dict[str, Any]:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        info: dict[str, Any] = qemu.monitor.execute("query-migrate")
        if info.get("status") in ("completed", "failed", "cancelled"):
            return info
        if time.monotonic() > deadline:
            return {"status": "failed", "error-desc": f"not over after {TIMEOUT_S} s"}
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
