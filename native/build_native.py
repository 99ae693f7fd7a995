"""Builds the C extension ``pageferry.kernel._native`` (cffi, API mode).

``ffibuilder`` is what setup.py names. Run as a program, it compiles in place, into
agent/pageferry/kernel/, which is enough to work from a checkout.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).resolve().parent
ROOT = NATIVE.parent
SOURCES = (
    "runs.c",
    "pageset.c",
    "paging.c",
    "residency.c",
    "pagemap.c",
    "zero.c",
    "transfer.c",
    "tracking.c",
    "inject.c",
    "helper.c",
)
# -Wno-unused-parameter: cffi's own generated wrappers would trip -Wextra -Werror.
COMPILE_ARGUMENTS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")


def make_builder(sources_folder: str = "native") -> FFI:
    """The cffi builder. setuptools wants source paths relative to the repository's root."""
    builder = FFI()
    builder.cdef(re.sub(r"/\*.*?\*/", "", (NATIVE / "api.h").read_text(), flags=re.DOTALL))
    builder.set_source(
        "pageferry.kernel._native",
        '#include "native.h"',
        sources=[f"{sources_folder}/{name}" for name in SOURCES],
        depends=[f"{sources_folder}/{name}" for name in ("api.h", "inject.h", "native.h")],
        include_dirs=[str(NATIVE)],
        define_macros=[("_GNU_SOURCE", "1")],
        extra_compile_args=list(COMPILE_ARGUMENTS),
    )
    return builder


def build_in_place() -> Path:
    """Compile, and put the extension beside the Python modules. Returns its path."""
    with tempfile.TemporaryDirectory() as folder:
        # Absolute paths keep the object files out of the checkout.
        built = Path(make_builder(str(NATIVE)).compile(tmpdir=folder))
        target = ROOT / "agent" / "pageferry" / "kernel" / built.name
        # Renamed into place: processes that have the old one loaded keep it.
        staged = target.with_suffix(".new")
        shutil.copy2(built, staged)
        os.replace(staged, target)
    return target


ffibuilder = make_builder()

if __name__ == "__main__":
    print(build_in_place())
