"""Wrong variants of a series, which its selftest must catch.

Each is one replacement in the patched source, from mutants.toml beside the patches. The kernel is
built anew with it and boots the selftest: when all checks pass, the selftest misses a mistake that
somebody could make.
"""

from __future__ import annotations

import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.kernels.booting import BootError, boot
from pageferry.testing.lab.kernels.building import KernelTree, build_program
from pageferry.testing.lab.kernels.image import Image
from pageferry.testing.lab.kernels.record import SELFTEST
from pageferry.testing.lab.kernels.running import Say
from pageferry.testing.lab.kernels.series import patches_folder
from pageferry.testing.lab.packages import qemu_7

HANGS = -1
"""Stands for a number of failed checks when the guest did not even come to its end."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake: in this file, these lines instead of those."""

    name: str
    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """The file's text with the mistake in it. ValueError when its place is not found once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} has {text.count(self.old)} places for {self.name!r}")
        return text.replace(self.old, self.new)


def all_mutants() -> list[Mutant]:
    """Those of mutants.toml."""
    text = (patches_folder() / "mutants.toml").read_text(encoding="utf-8")
    return [Mutant(**entry) for entry in tomllib.loads(text)["mutant"]]


def run_mutants(tree: KernelTree, say: Say) -> dict[str, int]:
    """Build and boot each; how many checks failed, by the mutant's name. Raises BuildError."""
    caught = {}
    with tempfile.TemporaryDirectory(prefix="pageferry-lab-") as folder:
        image = _image(tree, Path(folder))
        for mutant in all_mutants():
            path = tree.sources / mutant.file
            right = path.read_text(encoding="utf-8")
            path.write_text(mutant.applied(right), encoding="utf-8")
            try:
                caught[mutant.name] = _failures(tree.rebuild(), image)
            finally:
                path.write_text(right, encoding="utf-8")
            say(f"{tree.series.name}: {mutant.name}: caught by {caught[mutant.name]} checks")
    return caught


def _image(tree: KernelTree, folder: Path) -> Path:
    init = folder / "init"
    build_program(patches_folder() / "guest/init.c", tree.headers(), init)
    image = Image()
    image.add("/init", init)
    image.add(f"/bin/{SELFTEST}", tree.selftests()[SELFTEST])
    image.tests.append(f"/bin/{SELFTEST}")
    image.write(folder / "image.cpio")
    return folder / "image.cpio"


def _failures(kernel: Path, image: Path) -> int:
    try:
        report = boot(qemu_7(), kernel, image, timeout_s=300)
    except BootError:
        return HANGS
    return len(report.program(SELFTEST).failed)
