"""A guest's RAM as a picture: from counts by cell to colours and letters. Pure.

A cell's colour is mixed from those of its pages. Cells run from left to right and from top to
bottom, in the order of the guest's addresses within a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pageferry.control.info import BlockResidency

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

RESIDENT: Final[Colour] = (0x2F, 0xA3, 0x6B)
SWAPPED: Final[Colour] = (0x3D, 0x6F, 0xD6)
HOLE: Final[Colour] = (0x2A, 0x2E, 0x35)
OUTSIDE: Final[Colour] = (0, 0, 0)
"""Beyond the end of the block, in the last row."""

LEGEND: Final = (("resident", RESIDENT, "#"), ("swapped", SWAPPED, "s"), ("hole", HOLE, "."))

PAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Cell:
    """Part of a block: the shares of its pages that are resident and swapped, each 0 to 1."""

    resident: float
    swapped: float

    @property
    def colour(self) -> Colour:
        """Mixed from those of its pages."""
        hole = max(0.0, 1.0 - self.resident - self.swapped)
        shares = ((self.resident, RESIDENT), (self.swapped, SWAPPED), (hole, HOLE))
        red, green, blue = (
            round(sum(share * colour[channel] for share, colour in shares)) for channel in range(3)
        )
        return red, green, blue

    @property
    def letter(self) -> str:
        """What most of its pages are; something rather than a hole when there is anything."""
        if not self.resident and not self.swapped:
            return LEGEND[2][2]
        return LEGEND[0][2] if self.resident >= self.swapped else LEGEND[1][2]


def cells_of(block: BlockResidency) -> list[Cell]:
    """The cells of a block whose map was asked for."""
    cells = []
    left_pages = block.length_bytes // PAGE_BYTES
    for resident, swapped in zip(block.resident_map, block.swapped_map, strict=True):
        pages = max(1, min(block.cell_bytes // PAGE_BYTES, left_pages))
        left_pages -= pages
        cells.append(Cell(resident / pages, swapped / pages))
    return cells


def rows_of(cells: list[Cell], columns: int) -> list[list[Cell]]:
    """The cells in rows; the last one may be shorter."""
    return [cells[first : first + columns] for first in range(0, len(cells), columns)]


def colours_of(rows: list[list[Cell]], columns: int) -> list[list[Colour]]:
    """A rectangle of colours, filled up in the last row."""
    return [[cell.colour for cell in row] + [OUTSIDE] * (columns - len(row)) for row in rows]
