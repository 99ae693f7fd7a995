"""Pictures of guest RAM: what colours and letters mean, and files that other programs read."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.cli.images import png, svg
from pageferry.cli.picture import (
    HOLE,
    OUTSIDE,
    RESIDENT,
    SWAPPED,
    Cell,
    Colour,
    cells_of,
    colours_of,
    rows_of,
)
from pageferry.control.info import BlockResidency

BLOCK = BlockResidency(
    "mem0", 3 * 4096, 2 * 4096, 4 * 4096, 4 * 4096, resident_map=(3, 0, 0), swapped_map=(0, 1, 1)
)


def unpack_png(data: bytes) -> list[list[Colour]]:
    """The pixels of a PNG as this project writes it, with every checksum checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (crc,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert crc == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, colour, rest) == (8, 2, [0, 0, 0])
    lines = zlib.decompress(chunks[b"IDAT"])
    assert len(lines) == height * (1 + 3 * width)
    rows: list[list[Colour]] = []
    for number in range(height):
        line = lines[number * (1 + 3 * width) :][: 1 + 3 * width]
        assert line[0] == 0
        rows.append([(line[i], line[i + 1], line[i + 2]) for i in range(1, len(line), 3)])
    return rows


def test_cells_are_shares_of_their_pages_also_the_short_last_one() -> None:
    assert cells_of(BLOCK) == [Cell(0.75, 0.0), Cell(0.0, 0.25), Cell(0.0, 1.0)]


def test_pure_cells_have_pure_colours_and_mixed_ones_lie_between() -> None:
    assert Cell(1, 0).colour == RESIDENT
    assert Cell(0, 1).colour == SWAPPED
    assert Cell(0, 0).colour == HOLE
    for channel, value in enumerate(Cell(0.5, 0.5).colour):
        low, high = sorted((RESIDENT[channel], SWAPPED[channel]))
        assert low <= value <= high


@pytest.mark.parametrize(
    ("cell", "letter"),
    [(Cell(0, 0), "."), (Cell(0.01, 0), "#"), (Cell(0.2, 0.3), "s"), (Cell(0.3, 0.3), "#")],
)
def test_letters(cell: Cell, letter: str) -> None:
    assert cell.letter == letter


def test_rows_are_filled_up() -> None:
    rows = rows_of(cells_of(BLOCK), 2)
    colours = colours_of(rows, 2)
    assert [len(row) for row in colours] == [2, 2]
    assert colours[1] == [SWAPPED, OUTSIDE]


COLOURS = st.tuples(*[st.integers(0, 255)] * 3)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.data())
def test_png_holds_what_was_drawn(width: int, height: int, scale: int, data: st.DataObject) -> None:
    line = st.lists(COLOURS, min_size=width, max_size=width)
    rows = data.draw(st.lists(line, min_size=height, max_size=height))
    pixels = unpack_png(png(rows, scale))
    assert [row[::scale] for row in pixels[::scale]] == rows
    assert len(pixels) == height * scale
    assert all(len(row) == width * scale for row in pixels)


def test_svg_is_xml_with_every_cell_in_its_place() -> None:
    rows = [[RESIDENT, RESIDENT, SWAPPED], [HOLE, HOLE, HOLE]]
    text = svg("RAM of <web & co>", [("mem0", rows)], scale=4)
    root = ET.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{name}title") == "RAM of <web & co>"
    group = root.find(f"{name}g")
    assert group is not None
    rects = [(r.get("x"), r.get("width"), r.get("fill")) for r in group]
    assert rects == [
        ("12", "8", "#2fa36b"),
        ("20", "4", "#3d6fd6"),
        ("12", "12", "#2a2e35"),
    ]
    assert int(group[2].get("y", "0")) - int(group[0].get("y", "0")) == 4
    assert {"resident", "swapped", "hole", "mem0"} <= {t.text for t in root.iter(f"{name}text")}
