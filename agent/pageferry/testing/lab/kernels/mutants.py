"""Wrong variants of a series, which its selftest must catch.

Each is one replacement in the patched source, from mutants.toml beside the patches. The kernel is
built anew with it and boots the selftest: when all checks pass, the selftest misses a mistake that
somebody could make.
"""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.kernels.booting import BootError, Waits, boot
from pageferry.testing.lab.kernels.building import KernelTree, Variant, build_program
from pageferry.testing.lab.kernels.image import Image
from pageferry.testing.lab.kernels.record import SELFTEST
from pageferry.testing.lab.kernels.running import Say
from pageferry.testing.lab.kernels.series import patches_folder
from pageferry.testing.lab.packages import qemu_7

HANGS = -1
"""Stands for a number of failed checks when the guest or the selftest did not come to its end: it
hung, died, or the kernel panicked."""

SLOWER = 20
"""So many times as long as the series as it is may a mutant take. Checks that fail are slower: they
wait for pages that never get to where they should be."""
SHORTEST_WAIT_S = 240.0


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


def run_mutants(tree: KernelTree, known: Mapping[str, int], say: Say) -> Iterator[dict[str, int]]:
    """Build and boot each; yields how many checks failed, or `HANGS`, by the mutant's name.

    Those of *known* are left out. Raises BuildError, and BootError when the series as it is does
    not pass: then nothing can be said about mistakes in it.
    """
    missing = [mutant for mutant in all_mutants() if mutant.name not in known]
    if not missing:
        return
    with tempfile.TemporaryDirectory(prefix="pageferry-lab-") as folder:
        image = _image(tree, Path(folder))
        waits = _waits(tree, image)
        for mutant in missing:
            path = tree.sources / mutant.file
            right = path.read_text(encoding="utf-8")
            path.write_text(mutant.applied(right), encoding="utf-8")
            try:
                failed = failures(tree.rebuild(), image, waits)
            finally:
                path.write_text(right, encoding="utf-8")
            how = "hangs, dies or panics" if failed == HANGS else f"caught by {failed} checks"
            say(f"{tree.series.name}: {mutant.name}: {how}")
            yield {mutant.name: failed}


def _image(tree: KernelTree, folder: Path) -> Path:
    init = folder / "init"
    build_program(patches_folder() / "guest/init.c", tree.headers(), init)
    image = Image()
    image.add("/init", init)
    image.add(f"/bin/{SELFTEST}", tree.selftests()[SELFTEST])
    image.tests.append(f"/bin/{SELFTEST}")
    image.write(folder / "image.cpio")
    return folder / "image.cpio"


def _waits(tree: KernelTree, image: Path) -> Waits:
    """When a mutant hangs, by what the series as it is takes on this machine now."""
    report = boot(qemu_7(), tree.kernel(Variant.PATCHED).image, image)
    selftest = report.program(SELFTEST)
    if selftest.failed or selftest.ended != "exit 0":
        raise BootError(f"the series fails its own selftest: {selftest.failed or selftest.ended}")
    return Waits(
        silence_s=max(SHORTEST_WAIT_S, SLOWER * report.longest_silence_s),
        total_s=max(SHORTEST_WAIT_S, SLOWER * report.ran_s),
    )


def failures(kernel: Path, image: Path, waits: Waits) -> int:
    """How many checks fail with that kernel; `HANGS` when they do not come to an end."""
    try:
        selftest = boot(qemu_7(), kernel, image, waits=waits).program(SELFTEST)
    except BootError:
        return HANGS
    died = not selftest.failed and selftest.ended != "exit 0"
    return HANGS if died else len(selftest.failed)
