"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from pageferry.testing.lab.cache import repository
from pageferry.testing.lab.kvm import accelerator_for
from pageferry.testing.lab.packages import QemuBinary

GIB = 1024**3


def machine(binary: QemuBinary) -> dict[str, Any]:
    """This machine, as readers of a table need to know it."""
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": model[1].strip() if model else platform.machine(),
        "processors": os.cpu_count(),
        "memory_gib": round(int(memory[1]) * 1024 / GIB, 1) if memory else None,
        "kernel": platform.release(),
        "qemu": binary.version_text,
        "accelerator": accelerator_for(binary),
        "load_at_start": round(os.getloadavg()[0], 1),
    }


def revision() -> str:
    """Which pageferry was measured: the commit, with ``+`` when files differ from it; empty when
    this is no checkout."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
        cwd=repository(),
    )
    return described.stdout.strip() if described.returncode == 0 else ""


def machine_text(found: dict[str, Any]) -> str:
    """One line about it."""
    return (
        f"{found['date']}: {found['processors']} × {found['processor']}, {found['memory_gib']} GiB,"
        f" Linux {found['kernel']}, QEMU {found['qemu']} ({found['accelerator']}),"
        f" load {found['load_at_start']} before it began"
    )
