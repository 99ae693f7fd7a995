"""docs/faults.md is about the phases and faults that there are, and says what may be."""

from __future__ import annotations

from pathlib import Path

from pageferry.model.phase import DestinationPhase, SourcePhase
from tests.faults.cases import ENDS, MATRIX, QUICK, WAY, Case, Fault, owners
from tests.faults.table import (
    LETTERS,
    MATRIX_PART,
    NOTHING,
    UNTIL_SETTLED,
    header,
    part,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"


def cells() -> dict[Case, str]:
    """The table's cells by what they are about."""
    lines = part(DOCUMENT.read_text(), MATRIX_PART).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == header()
    assert [row[0] for row in rows[2:]] == [fault.value for fault in Fault]
    found = {}
    for fault, row in zip(Fault, rows[2:], strict=True):
        for phase, cell in zip(WAY, row[1:], strict=True):
            found[Case(phase, fault)] = cell
    return found


def test_the_matrix_is_about_every_phase() -> None:
    assert set(WAY) | ENDS == {*SourcePhase, *DestinationPhase}
    assert {case.phase for case in MATRIX} == set(WAY)
    assert {case.fault for case in MATRIX} == set(Fault)


def test_the_cut_for_every_day_has_each_fault_and_each_phase() -> None:
    assert set(MATRIX) >= QUICK
    assert {case.phase for case in QUICK} == set(WAY)
    assert {case.fault for case in QUICK} == set(Fault)


def test_the_table_has_a_cell_for_each_case_and_no_other() -> None:
    assert {case for case, cell in cells().items() if cell != NOTHING} == set(MATRIX)


def test_the_table_says_what_may_be() -> None:
    for case, cell in cells().items():
        if cell != NOTHING:
            allowed = {LETTERS[owner] for owner in owners(case)}
            assert cell.removesuffix(UNTIL_SETTLED) in allowed, case
