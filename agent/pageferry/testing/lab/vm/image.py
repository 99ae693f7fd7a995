"""The VM's initramfs: its init, the modules that the kernel lacks until then, and the script."""

from __future__ import annotations

from pathlib import Path

from pageferry.testing.lab.cache import cached, digest_of_files
from pageferry.testing.lab.cpio import archive
from pageferry.testing.lab.linux import COMPILER, module_bytes, modules_in_order
from pageferry.testing.lab.packages import GuestKernel
from pageferry.testing.lab.programs import build

MODULES = ("virtio_blk", "overlay")
"""virtiofs itself is built into Debian's cloud kernel."""


def init_program() -> Path:
    """The static init; built into the cache when missing or out of date."""
    source = Path(__file__).parent / "init.c"

    def make(folder: Path) -> None:
        build(*COMPILER, "-o", str(folder / "init"), str(source))

    return cached(f"vm/{digest_of_files(source)}", make) / "init"


def initramfs(kernel: GuestKernel, script: str | None = None) -> bytes:
    """The initramfs that runs `script` in this kernel, on the host's root; without a script, what
    the first disk boots. LabError when a module is missing.
    """
    files = {"init": init_program().read_bytes()}
    if script is not None:
        files["script"] = script.encode()
    for number, path in enumerate(modules_in_order(kernel.modules, MODULES)):
        name = f"modules/{number:02}-{path.name.removesuffix('.xz')}"
        files[name] = module_bytes(path)
    return archive(files, executable=frozenset({"init"}))
