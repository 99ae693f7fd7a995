"""Whether KVM really runs a guest here: found by running one.

Some hosts have a /dev/kvm that opens and starts a virtual machine but never gets it going, or only
now and then (nested, and emulating instructions that it does not know). So the probe boots the
freestanding guest, as the tests do, several times, and wants it to work at full speed each time;
the answer holds until reboot. PAGEFERRY_ACCELERATOR=tcg or kvm decides without a probe.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import subprocess
from pathlib import Path

from pageferry.testing.lab.cache import cache_folder
from pageferry.testing.lab.guest import freestanding_image
from pageferry.testing.lab.packages import QemuBinary

ACCELERATOR_VARIABLE = "PAGEFERRY_ACCELERATOR"

PROBE_TIMEOUT_S = 4.0
"""Under a working KVM the guest has reported often enough within a second and a half."""

PROBE_BOOTS = 3
"""One boot of four was seen to succeed on a host whose KVM is of no use."""

PROBE_SAMPLES = 8
"""Reports to wait for; the guest makes one every 100 ms."""


@functools.cache
def accelerator_for(binary: QemuBinary) -> str:
    """``kvm`` where this QEMU runs the freestanding guest with it, else ``tcg``."""
    wanted = os.environ.get(ACCELERATOR_VARIABLE)
    if wanted:
        return wanted
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = cache_folder() / f"accelerator-{binary.version_text}-{boot}"
    with contextlib.suppress(FileNotFoundError):
        return note.read_text()
    works = all(_boots_under_kvm(binary) for _boot in range(PROBE_BOOTS))
    found = "kvm" if works else "tcg"
    note.write_text(found)
    return found


def _boots_under_kvm(binary: QemuBinary) -> bool:
    command = binary.command(
        *("-machine", "q35,memory-backend=ram0", "-accel", "kvm", "-m", "64M"),
        *("-object", "memory-backend-memfd,id=ram0,size=64M,share=on"),
        *("-nodefaults", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(freestanding_image()), "-append", "cold_mib=24 hot_mib=4"),
    )
    process = subprocess.Popen(
        ["timeout", str(PROBE_TIMEOUT_S), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=binary.full_environment(),
    )
    try:
        output = process.stdout
        if output is None:
            return False
        reports = (line for line in output if line.startswith(b"S "))
        return len(list(itertools.islice(reports, PROBE_SAMPLES))) == PROBE_SAMPLES
    finally:
        process.terminate()
        process.communicate()
