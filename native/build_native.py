"""Builds the C extensions (cffi, API mode): ``pageferry.kernel._native``, which works on guest
memory, and ``pageferry.net._tls``, which alone needs libssl.

``ffibuilder`` and ``tls_ffibuilder`` are what setup.py names. Run as a program, it compiles in
place, into agent/pageferry/, which is enough to work from a checkout.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

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
    "placing.c",
    "pack.c",
    "tracking.c",
    "inject.c",
    "helper.c",
)
HEADERS = ("api.h", "inject.h", "native.h", "placing.h", "scatter.h", "wire.h")
TLS_SOURCES = ("tls_context.c", "tls.c", "tls_wire.c")
TLS_HEADERS = ("tls_api.h", "tls.h", "tls_state.h", "wire.h")
# -Wno-unused-parameter: cffi's own generated wrappers would trip -Wextra -Werror.
COMPILE_ARGUMENTS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")


def make_builder(sources_folder: str = "native") -> FFI:
    """The extension that works on guest memory. setuptools wants source paths relative to the
    repository's root.
    """
    return _builder(
        "pageferry.kernel._native",
        "api.h",
        "native.h",
        sources=[f"{sources_folder}/{name}" for name in SOURCES],
        depends=[f"{sources_folder}/{name}" for name in HEADERS],
        libraries=["zstd"],
    )


def make_tls_builder(sources_folder: str = "native") -> FFI:
    """The extension that speaks TLS."""
    return _builder(
        "pageferry.net._tls",
        "tls_api.h",
        "tls.h",
        sources=[f"{sources_folder}/{name}" for name in TLS_SOURCES],
        depends=[f"{sources_folder}/{name}" for name in TLS_HEADERS],
        libraries=["ssl", "crypto"],
    )


def _builder(module: str, interface: str, header: str, **options: Any) -> FFI:
    builder = FFI()
    builder.cdef(re.sub(r"/\*.*?\*/", "", (NATIVE / interface).read_text(), flags=re.DOTALL))
    builder.set_source(
        module,
        f'#include "{header}"',
        include_dirs=[str(NATIVE)],
        define_macros=[("_GNU_SOURCE", "1")],
        extra_compile_args=list(COMPILE_ARGUMENTS),
        **options,
    )
    return builder


def build_in_place() -> list[Path]:
    """Compile, and put the extensions beside the Python modules. Returns their paths."""
    return [
        _build_in_place(make_builder(str(NATIVE)), "kernel"),
        _build_in_place(make_tls_builder(str(NATIVE)), "net"),
    ]


def _build_in_place(builder: FFI, package: str) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        # Absolute paths keep the object files out of the checkout.
        built = Path(builder.compile(tmpdir=folder))
        target = ROOT / "agent" / "pageferry" / package / built.name
        # Renamed into place: processes that have the old one loaded keep it.
        staged = target.with_suffix(".new")
        shutil.copy2(built, staged)
        os.replace(staged, target)
    return target


ffibuilder = make_builder()
tls_ffibuilder = make_tls_builder()

if __name__ == "__main__":
    for path in build_in_place():
        print(path)
