"""Look at a guest and sample its writes, to tell what its migration would cost. Moves nothing.

Runs as a process of its own (``python -m pageferry.migration.estimation``), as a migration does: it
takes a userfaultfd over from QEMU for the sample, and when it ends, however it ends, the kernel
takes the protection off. The request is a JSON object on stdin, the answer one on stdout.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from pageferry.kernel.pageset import PageSet
from pageferry.kernel.residency import choose_reader, residency, summary
from pageferry.migration.guest_ram import (
    CarriedBlock,
    guest_ram,
    refuse,
    refuse_other_users,
    refuse_tracked,
)
from pageferry.migration.outcome import explained
from pageferry.migration.writes import GuestWrites
from pageferry.model.parameters import MigrationParameters
from pageferry.model.residency import ResidencyBytes
from pageferry.policy.estimate import (
    ASSUMED_BANDWIDTH,
    ASSUMED_SWAP_BANDWIDTH,
    Estimate,
    WriteSample,
    estimate,
)
from pageferry.qemu.look import look
from pageferry.qemu.monitor import open_monitor
from pageferry.qemu.switchover import drain

STEP_S = 0.1
"""Between two scans of the sample: as long as the shortest round."""


async def estimate_guest(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to *request*: ``qmp``, ``sample-time`` in seconds, and perhaps ``bandwidth``,
    ``swap-bandwidth`` and ``parameters``. Raises what a migration of the guest would be refused
    with."""
    parameters = MigrationParameters.from_dict(request.get("parameters") or {})
    bandwidth = float(request.get("bandwidth") or ASSUMED_BANDWIDTH)
    swap_bandwidth = float(request.get("swap-bandwidth") or ASSUMED_SWAP_BANDWIDTH)
    async with open_monitor(request["qmp"]) as monitor:
        view = await look(monitor)
        refuse(view, "source")
        pid = monitor.peer_pid
        async with guest_ram(pid, view, writable=False) as blocks:
            await trio.to_thread.run_sync(refuse_tracked, pid, blocks)
            await trio.to_thread.run_sync(refuse_other_users, pid, blocks)
            reader = choose_reader(parameters.residency_way)
            found = await trio.to_thread.run_sync(
                lambda: sum(
                    (summary(*residency(each.mapping, reader)) for each in blocks),
                    ResidencyBytes(),
                )
            )

            async def drain_now() -> float:
                return await drain(monitor)

            writes = await trio.to_thread.run_sync(
                GuestWrites.arm, pid, blocks, drain_now, view.vcpu_threads
            )
            try:
                sample = await _sample(writes, blocks, float(request["sample-time"]))
            finally:
                await trio.to_thread.run_sync(writes.close)
    costs = estimate(
        found,
        sample,
        bandwidth=bandwidth,
        swap_bandwidth=swap_bandwidth,
        downtime_limit_ms=parameters.downtime_limit_ms,
        max_rounds=parameters.max_rounds,
    )
    return {
        **_answer(costs, sample),
        "residency": {key.replace("_", "-"): value for key, value in found.as_dict().items()},
        "bandwidth": round(bandwidth),
        "bandwidth-assumed": not request.get("bandwidth"),
        "swap-bandwidth": round(swap_bandwidth),
        "swap-bandwidth-assumed": not request.get("swap-bandwidth"),
    }


async def _sample(
    writes: GuestWrites, blocks: Sequence[CarriedBlock], seconds: float
) -> WriteSample:
    """Different pages written, cumulatively, at every step of *seconds*."""
    union = [PageSet(carried.block.pages) for carried in blocks]
    counts: list[int] = []
    began = trio.current_time()
    while trio.current_time() - began < seconds:
        await trio.sleep(STEP_S)
        for pages, written in zip(union, await writes.scan(), strict=True):
            pages.add_all(written)
        counts.append(sum(pages.count() for pages in union))
    step_s = (trio.current_time() - began) / len(counts)  # what it was on a busy host
    return WriteSample(step_s, counts)


def _answer(costs: Estimate, sample: WriteSample) -> dict[str, Any]:
    return {
        "transfer-bytes": costs.transfer_bytes,
        "page-in-bytes": costs.page_in_bytes,
        "total-time": costs.duration_ms,
        "rounds": costs.rounds,
        "dirty-bytes-per-second": round(costs.dirty_bytes_per_s),
        "expected-downtime": costs.downtime_ms,
        "converges": costs.converges,
        "sample-time": round(sample.length_s, 3),
    }


def main() -> int:
    """Entry point of the process."""
    request = json.load(sys.stdin)
    try:
        answer = {"return": trio.run(estimate_guest, request)}
    except Exception as error:  # noqa: BLE001 - told to whoever asked
        answer = {"error": explained(error).report()}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
