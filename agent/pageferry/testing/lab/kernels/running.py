"""The whole test of one series: build, boot with and without, compare, and say what came out.

What must hold:

- patched: every check of the selftest and of pageferry's own code passes, and none is skipped but
  those that this kernel cannot have;
- unpatched: the selftest fails, else it shows nothing; pageferry falls back and is right all the
  same;
- the kernel's own selftests of the same code say the same with the series as without;
- the kernel complains of nothing, with all its checks on.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from pageferry.testing.lab.kernels.booting import GuestReport, ProgramReport, Waits, boot
from pageferry.testing.lab.kernels.building import KernelTree, Variant, build_program
from pageferry.testing.lab.kernels.image import Image
from pageferry.testing.lab.kernels.record import Costs, Outcome, Result
from pageferry.testing.lab.kernels.series import patches_folder
from pageferry.testing.lab.packages import QemuBinary, qemu_7

SELFTEST = "pagemap_shmem_swap"
IN_TREE = ("pagemap_ioctl", "soft-dirty")
PYTHON = "agent"
DEBUG_WAITS = Waits(silence_s=3600, total_s=4 * 3600)
"""KASAN and lock checking under an emulated processor, on a machine that does other things."""
DEBUG_MEMORY_MIB = 3072
"""KASAN keeps a byte for each eight, and a while what was freed."""

Say = Callable[[str], None]


def run_series(
    tree: KernelTree,
    variants: Iterable[Variant],
    *,
    cost: bool,
    say: Say,
    keep: Callable[[Result], None],
) -> Result:
    """Build and boot the series in those variants. Raises BuildError, BootError, PatchError.

    *keep* is called with what there is after each variant, so that an error with the next one takes
    nothing away. That something came out wrong raises nothing: see `Result.faults`.
    """
    series = tree.series
    result = Result(
        series=series.name,
        digest=series.digest,
        kernel=tree.source.version,
        compiler=_first_line("gcc", "--version"),
        qemu=qemu_7().version_text,
    )
    with tempfile.TemporaryDirectory(prefix="pageferry-lab-") as folder:
        runs = _Runs(tree, Path(folder), result, say)
        # In this order: a tree is patched once and not turned back.
        for variant in (one for one in Variant if one in set(variants)):
            runs.test(variant)
            if cost and variant is not Variant.DEBUG:
                runs.measure(variant)
            keep(result)
    return result


class _Runs:
    """The steps of one test; what they find goes into the result."""

    def __init__(self, tree: KernelTree, folder: Path, result: Result, say: Say) -> None:
        self._tree = tree
        self._folder = folder
        self._result = result
        self._say = say
        self._qemu: QemuBinary = qemu_7()
        self._programs: dict[str, Path] = {}

    def test(self, variant: Variant) -> None:
        """Boot a kernel with all tests."""
        kernel = self._build(variant)
        image = self._image(variant)
        self._say(f"{self._tree.series.name} {variant}: boots")
        if variant is Variant.DEBUG:
            report = boot(self._qemu, kernel, image, memory_mib=DEBUG_MEMORY_MIB, waits=DEBUG_WAITS)
            if not report.locks_checked:
                report.complaints.append("locks were not checked to the end")
        else:
            report = boot(self._qemu, kernel, image)
        self._say(f"{self._tree.series.name} {variant}: ran for {report.ran_s:.0f} s")
        self._note(variant, report)

    def measure(self, variant: Variant) -> None:
        """Boot a kernel with the program that counts instructions."""
        kernel = self._build(variant)
        image = Image()
        image.add("/init", self._program("init"))
        image.add("/bin/cost", self._program("cost"))
        image.tests.append("/bin/cost")
        path = self._folder / "cost.cpio"
        image.write(path)
        self._say(f"{self._tree.series.name} {variant}: counts instructions")
        report = boot(self._qemu, kernel, path, count_instructions=True)
        costs: Costs = {}
        for line in report.program("cost").lines:
            if line.startswith("COST "):
                _, way, memory, state, count = line.split()
                costs[f"{way} {memory} {state}"] = int(count)
        self._result.cost[variant.value] = costs

    def _build(self, variant: Variant) -> Path:
        self._say(f"{self._tree.series.name} {variant}: builds, or takes it from the cache")
        built = self._tree.kernel(variant)
        self._result.build_seconds[variant.value] = built.seconds
        return built.image

    def _image(self, variant: Variant) -> Path:
        image = Image()
        image.add("/init", self._program("init"))
        for name, path in self._tree.selftests().items():
            if variant is Variant.DEBUG and name != SELFTEST:
                continue
            image.add(f"/bin/{name}", path)
            image.tests.append(f"/bin/{name}")
        image.add_python("unpatched" if variant is Variant.UNPATCHED else "patched")
        path = self._folder / f"{variant}.cpio"
        image.write(path)
        return path

    def _note(self, variant: Variant, report: GuestReport) -> None:
        checks = self._result.checks.setdefault(variant.value, {})
        for program in report.programs.values():
            name = PYTHON if program.name.startswith("python") else program.name
            checks[name] = _outcome(program)
            self._say(f"{self._tree.series.name} {variant}: {name}: {checks[name].summary()}")
            for line in self._unexpected(variant, name, program):
                self._say(f"    {line}")
        self._result.complaints[variant.value] = report.complaints

    @staticmethod
    def _unexpected(variant: Variant, name: str, program: ProgramReport) -> list[str]:
        """What to show of a program that should have passed."""
        if name in IN_TREE or (name == SELFTEST and variant is Variant.UNPATCHED):
            return []
        outcome = _outcome(program)
        return [] if not outcome.failed and outcome.ended == "exit 0" else program.lines[-40:]

    def _program(self, name: str) -> Path:
        if name not in self._programs:
            output = self._folder / name
            build_program(patches_folder() / "guest" / f"{name}.c", self._tree.headers(), output)
            self._programs[name] = output
        return self._programs[name]


def _outcome(program: ProgramReport) -> Outcome:
    return Outcome(
        passed=len(program.passed),
        failed=program.failed,
        skipped=program.skipped,
        ended=program.ended,
    )


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]
