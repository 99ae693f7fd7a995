"""Builds and runs the C sources' own test programs, with the sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import need

FOLDER = Path(__file__).resolve().parents[2] / "native" / "tests"


@pytest.mark.slow
def test_programs_pass_under_the_sanitizers(tmp_path: Path) -> None:
    need(shutil.which("gcc") is not None, "gcc is missing: install build-essential")
    result = subprocess.run(
        ["make", "-C", FOLDER, f"BUILD={tmp_path}", "CC=gcc"],
        capture_output=True,
        text=True,
        check=False,
        # Under `make test TESTS=…` that variable would replace the Makefile's own.
        env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
    )
    assert result.returncode == 0, result.stdout + result.stderr
