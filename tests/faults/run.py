"""The whole matrix: ``python -m tests.faults.run``, or ``make faults``.

Cases mostly wait, so several run beside each other; those that take the whole host's swap come
last, alone. The table is written when every case has passed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from tests.faults import table
from tests.faults.recording import RESULTS_VARIABLE, SHARD_VARIABLE, WHOLE_VARIABLE, read
from tests.support import REQUIRE_ALL_VARIABLE

PASSED, NOTHING_CHOSEN = 0, 5
"""Exit statuses of pytest."""

MATRIX = "tests/faults/test_matrix.py"
BESIDE = tuple(f"tests/faults/test_{name}.py" for name in ("throttled", "commit", "demanded"))
"""Cases that have no cell in the table."""


def main() -> int:
    """Run it. Returns the exit status: 0 when all has passed."""
    parser = argparse.ArgumentParser(description="Every fault in every phase.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="what came of each case")
    parser.add_argument("--table", type=Path, metavar="FILE", help="the document to bring up to it")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="cases at a time (2)")
    parser.add_argument("--only", metavar="WORDS", help="as pytest's -k; then without a table")
    arguments = parser.parse_args()
    if arguments.only and arguments.table:
        parser.error("--table needs all cases, so not --only")
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        results.touch()
        shards = [f"{number}/{arguments.jobs}" for number in range(arguments.jobs)]
        words = arguments.only or ""
        failed = _run(shards, results, words, MATRIX)
        failed += _run(["alone"], results, words, MATRIX, *BESIDE)
        found = read(results)
    if arguments.json is not None:
        lines = [asdict(found[name]) for name in sorted(found)]
        arguments.json.write_text(json.dumps(lines, indent=1) + "\n")
    if failed:
        return 1
    if arguments.table is not None:
        table.write(arguments.table, found)
    return 0


def _run(shards: Sequence[str], results: Path, words: str, *tests: str) -> int:
    """Run these beside each other. Returns how many have failed."""
    with ExitStack() as stack:
        processes = []
        for shard in shards:
            environment = {
                **os.environ,
                WHOLE_VARIABLE: "1",
                REQUIRE_ALL_VARIABLE: "1",
                SHARD_VARIABLE: shard,
                RESULTS_VARIABLE: str(results),
            }
            command = [sys.executable, "-m", "pytest", "-q", *tests, "-k", words]
            process = subprocess.Popen(command, env=environment)
            processes.append(process)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        statuses = [process.wait() for process in processes]
        return sum(status not in (PASSED, NOTHING_CHOSEN) for status in statuses)


if __name__ == "__main__":
    sys.exit(main())
