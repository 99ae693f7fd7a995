"""Building a small kernel with and without a series, and the selftests that the series brings.

A build is named by the hash of all that made it, and kept under that name. The unpacked source and
the objects go when the process ends: a kernel is a few MiB, its making some GiB. Where ccache is
installed it is used, with a cache beside the kernels.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pageferry.testing.lab.cache import cache_folder
from pageferry.testing.lab.kernels.applying import apply_series
from pageferry.testing.lab.kernels.series import Series, patches_folder
from pageferry.testing.lab.kernels.sources import Source
from pageferry.testing.lab.patience import patient

BUILD_TIMEOUT_S = 7200
RECIPE = "1"
"""Changes when the way of building does, so that kernels are built anew."""

SELFTESTS = ("pagemap_shmem_swap", "pagemap_ioctl", "soft-dirty")
"""Ours, and those of the kernel that look at the same code; a kernel may lack the latter."""


class BuildError(Exception):
    """A kernel could not be configured or built; the message holds what was said at the end."""


class Variant(StrEnum):
    """What kernel is built of a series' source."""

    UNPATCHED = "unpatched"
    PATCHED = "patched"
    DEBUG = "debug"
    """Patched, with the kernel's own checks."""

    @property
    def fragments(self) -> tuple[str, ...]:
        """Configuration fragments on top of tinyconfig."""
        return ("base", "debug") if self is Variant.DEBUG else ("base",)


@dataclass(frozen=True, slots=True)
class BuiltKernel:
    """A kernel that QEMU can boot."""

    image: Path
    seconds: int
    """What the build took, when it was made."""


@dataclass(slots=True)
class KernelTree:
    """The source of one kernel, unpacked when it is first needed, patched when that is."""

    series: Series
    source: Source
    folder: Path
    patched: bool = False

    def kernel(self, variant: Variant) -> BuiltKernel:
        """The kernel of that variant: from the cache, or built now. Raises BuildError.

        Ask for the unpatched one first: a tree is not turned back.
        """
        entry = self._entry(variant.value, *self._fragments(variant))
        if not (entry / "bzImage").is_file():
            self._build(variant, entry)
        seconds = int((entry / "seconds").read_text())
        return BuiltKernel(image=entry / "bzImage", seconds=seconds)

    def selftests(self) -> dict[str, Path]:
        """The static test programs, by name; built in the kernel's own way. Raises BuildError."""
        entry = self._entry("selftests", self.series.selftest_digest)
        if not entry.is_dir():
            self._prepare(patched=True)
            fresh = entry.with_name(entry.name + ".making")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            for name in SELFTESTS:
                if (self._sources / self.series.selftests / f"{name}.c").is_file():
                    self._build_selftest(name, fresh)
            fresh.rename(entry)
        return {path.name: path for path in sorted(entry.iterdir()) if path.name in SELFTESTS}

    def headers(self) -> Path:
        """The user-space headers of the patched kernel, for test programs."""
        entry = self._entry("headers", "")
        if not entry.is_dir():
            self._prepare(patched=True)
            objects = self._objects(Variant.PATCHED)
            self._configure(Variant.PATCHED, objects)
            self._make(objects, "headers")
            fresh = entry.with_name(entry.name + ".making")
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.copytree(objects / "usr/include", fresh)
            fresh.rename(entry)
        return entry

    def rebuild(self) -> Path:
        """Build the patched kernel as its source is now, which was changed meanwhile; uncached."""
        objects = self._objects(Variant.PATCHED)
        if not (objects / ".config").is_file():
            self._prepare(patched=True)
            self._configure(Variant.PATCHED, objects)
        self._make(objects, "bzImage")
        return objects / "arch/x86/boot/bzImage"

    @property
    def sources(self) -> Path:
        """The patched source tree."""
        self._prepare(patched=True)
        return self._sources

    @property
    def _sources(self) -> Path:
        return self.folder / "source"

    def _objects(self, variant: Variant) -> Path:
        # The patched kernel is built in the objects of the unpatched one: few files differ.
        return self.folder / ("debug" if variant is Variant.DEBUG else "objects")

    def _entry(self, what: str, *parts: str) -> Path:
        digest = hashlib.sha256()
        pins = [RECIPE, self.series.package, self.source.version, _compiler()]
        if what != Variant.UNPATCHED:
            pins.append(self.series.code_digest)
        for part in (*pins, *parts):
            digest.update(part.encode() + b"\0")
        name = f"{self.series.name}-{what}-{digest.hexdigest()[:16]}"
        return cache_folder() / "kernels" / "built" / name

    def _prepare(self, *, patched: bool) -> None:
        if not self._sources.is_dir():
            self.source.unpack(self._sources)
            self.patched = False
        if patched and not self.patched:
            apply_series(self.series, self._sources, exact=self.source.pinned)
            self.patched = True
        if self.patched and not patched:
            raise BuildError("the source is patched already: build the unpatched kernel first")

    def _build(self, variant: Variant, entry: Path) -> None:
        self._prepare(patched=variant is not Variant.UNPATCHED)
        objects = self._objects(variant)
        self._configure(variant, objects)
        began = os.times().elapsed
        self._make(objects, "bzImage")
        fresh = entry.with_name(entry.name + ".making")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        shutil.copy(objects / "arch/x86/boot/bzImage", fresh / "bzImage")
        shutil.copy(objects / ".config", fresh / "config")
        (fresh / "seconds").write_text(str(round(os.times().elapsed - began)))
        fresh.rename(entry)

    def _configure(self, variant: Variant, objects: Path) -> None:
        objects.mkdir(parents=True, exist_ok=True)
        wanted = "".join(self._fragments(variant))
        (objects / "wanted.config").write_text(wanted)
        self._make(objects, "tinyconfig")
        merge = ["scripts/kconfig/merge_config.sh", "-m", "-O", str(objects)]
        self._run(*merge, str(objects / ".config"), str(objects / "wanted.config"))
        self._make(objects, "olddefconfig")
        got = set((objects / ".config").read_text().splitlines())
        lost = [
            line for line in wanted.splitlines() if line.startswith("CONFIG_") and line not in got
        ]
        if lost:
            raise BuildError(f"{self.series.name} does not take {', '.join(lost)}")

    def _fragments(self, variant: Variant) -> list[str]:
        """The configuration on top of tinyconfig, as this series changes it."""
        fragments = [
            "".join(
                line
                for line in _fragment(name).splitlines(keepends=True)
                if line.partition("=")[0] not in self.series.leaves_out
            )
            for name in variant.fragments
        ]
        return [*fragments, *(f"{option}=y\n" for option in sorted(self.series.adds))]

    def _build_selftest(self, name: str, folder: Path) -> None:
        self._run(
            *("make", "-s", "-C", self.series.selftests, f"OUTPUT={folder}"),
            *(f"KHDR_INCLUDES=-isystem {self.headers()}", "EXTRA_CFLAGS=-static"),
            str(folder / name),
        )

    def _make(self, objects: Path, target: str) -> None:
        compiler = "ccache gcc" if shutil.which("ccache") else "gcc"
        self._run(
            *("nice", "-n", "19", "make", "-s", f"-j{os.cpu_count() or 1}", f"O={objects}"),
            *(f"CC={compiler}", f"HOSTCC={compiler}", target),
        )

    def _run(self, *command: str) -> None:
        environment = {
            **os.environ,
            "LC_ALL": "C",
            "KBUILD_BUILD_TIMESTAMP": "@0",
            "KBUILD_BUILD_USER": "pageferry",
            "KBUILD_BUILD_HOST": "lab",
            "CCACHE_DIR": str(cache_folder() / "kernels" / "ccache"),
        }
        # A group of its own: when this is interrupted, the compilers that make started end, too.
        process = subprocess.Popen(
            command,
            cwd=self._sources,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        try:
            said, _ = process.communicate(timeout=patient(BUILD_TIMEOUT_S))
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        if process.returncode:
            raise BuildError(f"{' '.join(command[:8])} failed:\n{said[-3000:]}")


@contextmanager
def kernel_tree(series: Series, source: Source) -> Iterator[KernelTree]:
    """A tree to build in, removed at the end; another process that wants it waits.

    Its path is always the same, as ccache likes it.
    """
    folder = cache_folder() / "kernels" / "work" / series.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{series.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield KernelTree(series, source, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def build_program(source: Path, headers: Path, output: Path) -> None:
    """Compile one static C program of kernel-patches/guest. Raises BuildError."""
    command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]
    done = subprocess.run(
        [*command, "-isystem", str(headers), "-o", str(output), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"{source.name} does not compile:\n{done.stderr[-2000:]}")


def _fragment(name: str) -> str:
    return (patches_folder() / "config" / f"{name}.config").read_text(encoding="utf-8")


def _compiler() -> str:
    done = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]
