"""Whether KVM really runs a guest here: found by running one.

Some hosts have a /dev/kvm that opens and starts a virtual machine but never gets it going. So the
probe boots the freestanding guest and waits for its first line; the answer holds until reboot.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from pathlib import Path

from pageferry.testing.lab.cache import cache_folder
from pageferry.testing.lab.guest import freestanding_image
from pageferry.testing.lab.packages import QemuBinary

PROBE_TIMEOUT_S = 4.0
"""Under a working KVM the guest reports within half a second."""


@functools.cache
def accelerator_for(binary: QemuBinary) -> str:
    """``kvm`` where this QEMU runs the freestanding guest with it, else ``tcg``."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = cache_folder() / f"accelerator-{binary.version_text}-{boot}"
    with contextlib.suppress(FileNotFoundError):
        return note.read_text()
    found = "kvm" if _boots_under_kvm(binary) else "tcg"
    note.write_text(found)
    return found


def _boots_under_kvm(binary: QemuBinary) -> bool:
    command = binary.command(
        *("-machine", "q35", "-accel", "kvm", "-m", "32", "-nodefaults", "-display", "none"),
        *("-serial", "stdio", "-kernel", str(freestanding_image())),
        *("-append", "cold_mib=1 hot_mib=1"),
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
        return output is not None and any(line.startswith(b"READY") for line in output)
    finally:
        process.terminate()
        process.communicate()
