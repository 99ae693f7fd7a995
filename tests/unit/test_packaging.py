"""What an installed package has: all that the code reads beside itself."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]

PACKAGE = ROOT / "agent" / "pageferry"

BUILT = {".py", ".pyc", ".so"}
"""Packages take Python files by themselves, and what was built beside them as well."""


def test_files_beside_the_code_are_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    installed = {
        path for pattern in settings["package-data"]["pageferry"] for path in PACKAGE.glob(pattern)
    }
    there = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in BUILT}
    assert there - installed == set()
