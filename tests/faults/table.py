"""docs/faults.md, from what came of a run: its text stays, what is between marks is made anew."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.faults.cases import DESTINATION_WAY, MATRIX, SOURCE_WAY, WAY, Case, Fault, Owner
from tests.faults.recording import Recorded

LETTERS: Final = {Owner.SOURCE: "S", Owner.DESTINATION: "D", Owner.ENDED: "E"}

UNTIL_SETTLED: Final = "*"
"""Marks a guest that was kept paused until the agents had settled it."""

NOTHING: Final = "–"

ABBREVIATED: Final = {"source": "src", "destination": "dst"}

MATRIX_PART: Final = "matrix"
SAID_PART: Final = "said"

_PART: Final = "<!-- made: {name} -->\n{text}<!-- end -->"


def replaced(document: str, parts: Mapping[str, str]) -> str:
    """*document* with its parts made anew. Raises ValueError when it has not all of them."""
    for name, text in parts.items():
        old = _PART.format(name=name, text=part(document, name))
        document = document.replace(old, _PART.format(name=name, text=text))
    return document


def part(document: str, name: str) -> str:
    """What is between the marks. Raises ValueError when there is no such part."""
    found = re.search(_PART.format(name=re.escape(name), text="(.*?)"), document, flags=re.DOTALL)
    if found is None:
        raise ValueError(f"the document has no part named {name}")
    return found[1]


def made_parts(results: Mapping[str, Recorded]) -> dict[str, str]:
    """Both tables. Raises KeyError when a case is missing."""
    return {MATRIX_PART: matrix_table(results), SAID_PART: said_table(results)}


def write(path: Path, results: Mapping[str, Recorded]) -> None:
    """Make the tables in the document at *path* anew."""
    path.write_text(replaced(path.read_text(), made_parts(results)))


def matrix_table(results: Mapping[str, Recorded]) -> str:
    """Faults down, phases across."""
    cells = {case: _cell(results[case.name]) for case in MATRIX}
    rows = [header(), ["---"] + [":-:"] * len(WAY)]
    for fault in Fault:
        row = [cells.get(Case(phase, fault), NOTHING) for phase in WAY]
        rows.append([fault.value, *row])
    return _lines(rows)


def header() -> list[str]:
    """The heads of the columns."""
    sides = [f"src {phase.value}" for phase in SOURCE_WAY]
    return ["fault", *sides, *(f"dst {phase.value}" for phase in DESTINATION_WAY)]


def said_table(results: Mapping[str, Recorded]) -> str:
    """What `pageferry migrate` said, once for each way in which it said it."""
    rows = [["fault", "in", "`pageferry migrate` says: what happened / the guest / what to do"]]
    rows.append(["---"] * 3)
    for fault in Fault:
        by_text: dict[str, list[str]] = {}
        for case in MATRIX:
            if case.fault is fault:
                said = results[case.name].said or "completed"
                by_text.setdefault(said, []).append(f"{ABBREVIATED[case.role]} {case.phase.value}")
        for text, phases in by_text.items():
            rows.append([fault.value, ", ".join(phases), text.replace("|", "\\|")])
    return _lines(rows)


def _cell(recorded: Recorded) -> str:
    letter = LETTERS[Owner[recorded.owner]]
    waited = recorded.status == "UNKNOWN" or recorded.recovered
    return letter + (UNTIL_SETTLED if waited else "")


def _lines(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
