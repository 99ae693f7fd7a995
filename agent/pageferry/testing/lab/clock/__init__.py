"""A host whose clock is wrong: a program's wall clock, set apart from this machine's.

Time namespaces do not do it: they have no wall clock of their own. So what asks for the time is
preloaded (``clock.c``), in the program and all that it starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pageferry.testing.lab.cache import cached, digest_of_files
from pageferry.testing.lab.programs import build

COMPILER = ("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")

OFFSET_VARIABLE = "PAGEFERRY_LAB_CLOCK_S"


def clock_off_by(seconds: int) -> Mapping[str, str]:
    """What a program's environment needs for a clock that is so far ahead. LabError."""
    return {"LD_PRELOAD": str(_library()), OFFSET_VARIABLE: str(seconds)}


def _library() -> Path:
    source = Path(__file__).parent / "clock.c"

    def make(folder: Path) -> None:
        build(*COMPILER, "-o", str(folder / "clock.so"), str(source))

    return cached(f"clock/{digest_of_files(source)}", make) / "clock.so"
