"""What came of each case, kept for the table: one JSON object per line."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.afterwards import Outcome
from tests.faults.cases import ALONE, Case

RESULTS_VARIABLE = "PAGEFERRY_FAULTS_RESULTS"
"""The file to append to."""

WHOLE_VARIABLE = "PAGEFERRY_FAULTS_WHOLE"
"""Set: every case, and not only the cut that `make test` runs."""

SHARD_VARIABLE = "PAGEFERRY_FAULTS_SHARD"
"""``I/N``: only each N-th case, from the I-th on, of those that may run beside others; ``alone``:
only those that may not."""

PLACEHOLDERS = (
    (re.compile(r"\b[0-9a-f]{32}\b"), "ID"),
    (re.compile(r"/[\w./-]*/[\w./-]+"), "PATH"),
    (re.compile(r"\b(?:192\.0\.2|127\.0\.0)\.\d+(?::\d+)?"), "HOST"),
    (re.compile(r"\bprocess \d+"), "process PID"),
    (re.compile(r"(?<=is gone: )(?:\[Errno \d+\] [\w ]+?|the other agent closed it)(?= /)"), "HOW"),
    (re.compile(r"\b\d+(?:\.\d+)? (?=seconds|s\b)"), "N "),
)
"""What differs from run to run."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One line."""

    what: str
    owner: str
    status: str
    recovered: bool
    said: str


def record(what: str, outcome: Outcome) -> None:
    """Note what came of a case, if that is wanted."""
    path = os.environ.get(RESULTS_VARIABLE)
    if not path:
        return
    line = {
        "what": what,
        "owner": outcome.owner.name,
        "status": outcome.status.name,
        "recovered": outcome.asked_recover,
        "said": said(outcome),
    }
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def said(outcome: Outcome) -> str:
    """Message, state and advice, without what differs from run to run."""
    parts = (outcome.message, outcome.guest_state, outcome.advice)
    text = " / ".join(" ".join(part.split()) for part in parts if part)
    for pattern, word in PLACEHOLDERS:
        text = pattern.sub(word, text)
    return text


def read(path: Path) -> dict[str, Recorded]:
    """The lines of a file, by what they are about; of several the last counts."""
    found: dict[str, Recorded] = {}
    for line in path.read_text().splitlines():
        values: dict[str, Any] = json.loads(line)
        found[values["what"]] = Recorded(**values)
    return found


def chosen(cases: list[Case], quick: frozenset[Case]) -> list[Case]:
    """The cases that this run is about."""
    wanted = cases if os.environ.get(WHOLE_VARIABLE) else [each for each in cases if each in quick]
    shard = os.environ.get(SHARD_VARIABLE)
    if not shard:
        return wanted
    if shard == "alone":
        return [each for each in wanted if each.fault in ALONE]
    number, _, of = shard.partition("/")
    return [each for each in wanted if each.fault not in ALONE][int(number) :: int(of)]
