"""The freestanding guest as tests use it: start, settle, pair with a destination, measure, verify.

A settled guest is one whose cold memory lies in swap, put there by real reclaim of its memory
cgroup, with its hot memory resident.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pageferry.testing.lab.cgroups import LabCgroup
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.guest import freestanding_image
from pageferry.testing.lab.hosts import cached_bytes, scratch_folder
from pageferry.testing.lab.kvm import accelerator_for
from pageferry.testing.lab.latency import (
    GuestLayout,
    Sample,
    Verification,
    parse_ready,
    parse_sample,
    parse_verified,
    percentile_us,
)
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.paired import PairedGuest
from pageferry.testing.lab.patience import patient
from pageferry.testing.lab.qemus import Machine

MIB = 1024 * 1024

READY_TIMEOUT_S = patient(90.0)
"""Filling 640 MiB takes 3 s under TCG, and as long again when most of it goes to swap at once."""

VERIFY_TIMEOUT_S = patient(120.0)
"""Verifying reads everything back from swap."""

SETTLE_TIMEOUT_S = patient(60.0)
SETTLE_STEP_BYTES = 8 * MIB
LEAST_LIMIT_BYTES = 24 * MIB


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """A freestanding guest and the machine it gets. Sizes of the regions in MiB.

    `pace`: hot pages rewritten each millisecond (16: 64 MiB once a second, so that careless reclaim
    finds them idle); 0: without a pause. `repeat`: how often each cold page holds the same words
    over (a power of two): 1 leaves a compressor nothing. `accelerator` None: KVM where it really
    runs the guest, else TCG. `prefix`: a command that starts its QEMU (``nsenter ...``).
    """

    binary: QemuBinary
    machine: str = "q35"
    ram_mib: int = 256
    backend: str = "file"
    cold_mib: int = 96
    hot_mib: int = 16
    zero_mib: int = 8
    seed: int = 1
    pace: int = 16
    repeat: int = 1
    limit_mib: int | None = None
    accelerator: str | None = None
    arguments: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()

    def command_line(self) -> str:
        """The guest's parameters."""
        return (
            f"cold_mib={self.cold_mib} hot_mib={self.hot_mib} zero_mib={self.zero_mib} "
            f"seed={self.seed} pace={self.pace} repeat={self.repeat}"
        )

    def as_machine(self) -> Machine:
        """How its QEMU is started."""
        return Machine(
            binary=self.binary,
            machine=self.machine,
            ram_mib=self.ram_mib,
            backend=self.backend,
            accelerator=self.accelerator or accelerator_for(self.binary),
            limit_bytes=None if self.limit_mib is None else self.limit_mib * MIB,
            arguments=(
                *("-kernel", str(freestanding_image()), "-append", self.command_line()),
                *self.arguments,
            ),
            prefix=self.prefix,
        )


class FreestandingGuest(PairedGuest):
    """A running freestanding guest: its QEMUs and what it says."""

    def __init__(self, plan: GuestPlan, folder: Path, stack: contextlib.ExitStack) -> None:
        self.plan = plan
        self.samples: list[Sample] = []
        self._layout: GuestLayout | None = None
        self._panic: str | None = None
        self._details: list[str] = []
        self._verifications: list[Verification] = []
        super().__init__(plan.as_machine(), folder, stack)

    @property
    def layout(self) -> GuestLayout:
        """Where its regions lie. LabError before :meth:`wait_ready`."""
        if self._layout is None:
            raise LabError("the guest is not ready yet")
        return self._layout

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> GuestLayout:
        """Wait until the guest has filled its memory."""
        self._wait(lambda: self._layout is not None, timeout_s, "filled its memory")
        return self.layout

    def settle(self, cold_share: float = 0.99, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Squeeze the guest's cgroup until `cold_share` of its cold memory lies in swap, then give
        the limit back. LabError without a limit, without swap, or when reclaim does not get there.
        """
        cgroup = self.source.cgroup
        if cgroup is None or self.plan.limit_mib is None:
            raise LabError("only a guest with a memory limit can be settled: set limit_mib")
        limit_bytes = self.plan.limit_mib * MIB
        deadline = time.monotonic() + timeout_s
        try:
            while self.cold_resident_share() > 1 - cold_share:
                if time.monotonic() > deadline:
                    raise LabError(f"cold memory does not go to swap: {self.source.residency()}")
                _squeeze(cgroup)
        finally:
            cgroup.set_limit(limit_bytes)
        self._wait_hot_resident(deadline)

    def cold_resident_share(self) -> float:
        """How much of the cold memory is resident on the source, 0 to 1."""
        cold = self.layout.cold
        found = cached_bytes(self.source.ram_descriptor(), cold.address, cold.length_bytes)
        return found / cold.length_bytes if cold.length_bytes else 0.0

    def hot_resident_share(self) -> float:
        """How much of the hot memory is resident on the source, 0 to 1."""
        hot = self.layout.hot
        found = cached_bytes(self.source.ram_descriptor(), hot.address, hot.length_bytes)
        return found / hot.length_bytes

    def verify(self, timeout_s: float = VERIFY_TIMEOUT_S) -> Verification:
        """Let the guest verify all its memory, wherever it runs.

        Its limit is lifted meanwhile. Where reclaim lists are the classic ones (Linux 6.18 without
        the multi-generational LRU), whether active pages are aged is decided by statistics up to
        4 s old: a guest that reads all it has at its hard limit then leaves nothing inactive, and
        is killed with 3 GiB of swap free (at its 6th and 21st verification, never migrated).
        """
        before = len(self._verifications)
        last_touches = self.samples[-1].touches if self.samples else 0
        runner = self.runner()
        with contextlib.ExitStack() as stack:
            if runner.cgroup is not None and self.plan.limit_mib is not None:
                stack.enter_context(runner.cgroup.unlimited(self.plan.limit_mib * MIB))
            self.serial.write(runner.serial_number, b"v")
            self._wait(lambda: len(self._verifications) > before, timeout_s, "verified its memory")
        found = self._verifications[before]
        if found.touches < last_touches:
            raise LabError(f"the guest fell back: {found.touches} touches after {last_touches}")
        return found

    def command(self, character: bytes) -> None:
        """Send one command character to the QEMU in which the guest runs."""
        self.write(character)

    def wait_samples(self, count: int, timeout_s: float = 30.0) -> list[Sample]:
        """Wait for `count` more samples; they come every 100 ms of a running guest."""
        before = len(self.samples)
        self._wait(lambda: len(self.samples) >= before + count, timeout_s, "reported")
        return self.samples[before : before + count]

    def samples_between(self, begin_s: float, end_s: float) -> list[Sample]:
        """The samples that arrived between two times of ``time.monotonic``."""
        return [sample for sample in self.samples if begin_s <= sample.host_time_s <= end_s]

    def hot_p99_us(self, begin_s: float, end_s: float) -> float | None:
        """The 99th percentile of a batch of 64 hot touches in this time; None without any."""
        samples = self.samples_between(begin_s, end_s)
        return percentile_us(samples, 0.99, self.layout.tsc_khz)

    def _wait_hot_resident(self, deadline: float) -> None:
        while self.hot_resident_share() < 0.98:
            if time.monotonic() > deadline:
                raise LabError("the hot memory does not come back: the limit is too small for it")
            time.sleep(0.05)

    def _trouble(self) -> str | None:
        return self._panic

    def _parse(self, host_time_s: float, line: str) -> None:
        if line.startswith("S "):
            self.samples.append(parse_sample(line, host_time_s))
            return
        self.lines.append(line)
        if line.startswith("READY "):
            self._layout = parse_ready(line)
        elif line.startswith("VERIFIED "):
            self._verifications.append(parse_verified(line, self._details))
            self._details = []
        elif line.startswith("V "):
            self._details.append(line)
        elif line.startswith("PANIC"):
            self._panic = line


@contextlib.contextmanager
def freestanding_guest(plan: GuestPlan) -> Iterator[FreestandingGuest]:
    """A freestanding guest, started; both its QEMUs are ended and cleared away afterwards."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        yield FreestandingGuest(plan, folder, stack)


def with_ram(ram_mib: int) -> Callable[[Machine], Machine]:
    """A change for :meth:`FreestandingGuest.start_destination`: another size of RAM."""
    return lambda machine: replace(machine, ram_mib=ram_mib)


def _squeeze(cgroup: LabCgroup) -> None:
    """Take one step from the cgroup, as much as reclaim gives."""
    target_bytes = max(cgroup.usage_bytes() - SETTLE_STEP_BYTES, LEAST_LIMIT_BYTES)
    # EBUSY: reclaim found too little this time; what it did find is swapped out all the same.
    with contextlib.suppress(OSError):
        cgroup.set_limit(target_bytes)
    # The hot set needs a moment to be touched, or it looks as cold as the rest.
    time.sleep(0.3)
