"""The Linux guest's initramfs: a static init of our own, and the modules that the kernel needs.

What the init does and says over the serial port is described in ``init.c``.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

from pageferry.testing.lab.cache import cached, digest_of_files
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.cpio import archive
from pageferry.testing.lab.packages import GuestKernel
from pageferry.testing.lab.programs import build

SOURCES = ("init.c", "disks.c", "memory.c", "records.c", "talk.c", "workload.h")

COMPILER = ("gcc", "-static", "-pthread", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_balloon", "virtio_rng")
"""All that any guest may want; each costs little when its device is not there."""


def initramfs(kernel: GuestKernel) -> Path:
    """The initramfs for this kernel; built into the cache when missing or out of date."""
    here = Path(__file__).parent
    sources = [here / name for name in SOURCES]

    def make(folder: Path) -> None:
        init = folder / "init"
        build(*COMPILER, "-o", str(init), *(str(path) for path in sources[:-1]))
        files = {"init": init.read_bytes()}
        for number, path in enumerate(modules_in_order(kernel.modules, MODULES)):
            files[f"modules/{number:02}-{path.name}"] = path.read_bytes()
        (folder / "initramfs").write_bytes(archive(files, executable=frozenset({"init"})))

    name = f"linux-guest/{kernel.release}-{digest_of_files(Path(__file__), *sources)}"
    return cached(name, make) / "initramfs"


def modules_in_order(folder: Path, wanted: Iterable[str]) -> list[Path]:
    """The files of these modules of a kernel, each after those that it depends on.

    Package contents only: no depmod has run. LabError when one is missing (a built-in one is, too).
    """
    files = {
        path.name.partition(".")[0].replace("-", "_"): path
        for pattern in ("*.ko", "*.ko.xz")
        for path in folder.rglob(pattern)
    }
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        if name not in files:
            raise LabError(f"the guest kernel in {folder} has no module {name}")
        if name in order:
            return
        for needed in dependencies(module_bytes(files[name])):
            add(needed)
        order[name] = files[name]

    for name in wanted:
        add(name)
    return list(order.values())


def module_bytes(path: Path) -> bytes:
    """A module's contents, unpacked; Debian's kernels from 6.12 on have them as ``.ko.xz``."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def dependencies(module: bytes) -> list[str]:
    """The names that a module's own .modinfo section says it depends on."""
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    names = match[1].decode() if match else ""
    return [name.replace("-", "_") for name in names.split(",") if name]
