"""Fuzz one target with atheris, coverage-guided.

``python -m tests.fuzz.run TARGET [libFuzzer's options] [CORPUS …]``; new inputs go to the first
corpus, and one that breaks something is left in a file that libFuzzer names.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["pageferry"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until told to stop, or until something breaks: the exit status is libFuzzer's."""
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
