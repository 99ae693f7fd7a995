"""The fuzz targets, replayed and then fuzzed for a few seconds each. `make fuzz` goes on longer."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS
from tests.support import need

CORPUS = Path(__file__).with_name("corpus")

SECONDS = 4
"""For each target: most of what is new is found in the first seconds; `make fuzz` goes on."""

MAX_RSS_MIB = 1024
"""libFuzzer ends a target that takes more: what a peer sends must not make a parser grow."""


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_taken(name: str) -> None:
    seeds = sorted((CORPUS / name).iterdir())
    assert seeds
    for seed in seeds:
        TARGETS[name](seed.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_breaks(name: str, tmp_path: Path) -> None:
    need(importlib.util.find_spec("atheris") is not None, "needs atheris, which this Python lacks")
    found = tmp_path / "corpus"
    found.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.run", name),
            *(f"-max_total_time={SECONDS}", f"-rss_limit_mb={MAX_RSS_MIB}", "-timeout=10"),
            *("-print_final_stats=1", f"-artifact_prefix={tmp_path}/"),
            *(str(found), str(CORPUS / name)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stdout)
    assert executed is not None, done.stdout[-2000:]
    print(f"{name}: {executed[1]} executions")
    assert int(executed[1]) > 200
