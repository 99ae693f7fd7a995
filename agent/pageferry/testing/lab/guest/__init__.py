"""The freestanding guest: C and assembly sources, and how they are built.

It boots by multiboot (``qemu -kernel``), so it needs no image and no guest kernel. What it does and
says over its serial port is described in ``guest.c``.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from pageferry.testing.lab.cache import cached, digest_of_files

PREBUILT = Path(__file__).parent / "guest.elf"
"""The image in an installed package, which comes without sources and asks for no compiler."""

SOURCES = ("boot.S", "guest.c", "machine.h", "guest.ld")

COMPILER = (
    *("gcc", "-m32", "-march=i686", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"),
    # No libc, and no libgcc either: plain gcc ships none for 32 bits.
    *("-ffreestanding", "-nostdlib", "-fno-pic", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-mgeneral-regs-only"),
    # Keep loops as written: as calls of memcpy and memset they would call themselves.
    "-fno-tree-loop-distribute-patterns",
)


def freestanding_image() -> Path:
    """The guest's ELF image, for ``-kernel``; built into the cache when missing or out of date."""
    if PREBUILT.exists():
        return PREBUILT
    here = Path(__file__).parent
    sources = [here / name for name in SOURCES]

    def make(folder: Path) -> None:
        objects = []
        for source in (here / "boot.S", here / "guest.c"):
            objects.append(str(folder / f"{source.stem}.o"))
            _build(*COMPILER, "-c", str(source), "-o", objects[-1])
        image = str(folder / "guest.elf")
        _build(
            *("ld", "-m", "elf_i386", "-nostdlib", "--build-id=none", "-z", "noexecstack"),
            *("-T", str(here / "guest.ld"), "-o", image, *objects),
        )

    return cached(f"guest/{digest_of_files(*sources)}", make) / "guest.elf"


def _build(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:2])} could not build the guest: {done.stderr}")
