"""`pageferry residency`: where a guest's memory is, as numbers and as a picture."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Final

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.images import png, svg
from pageferry.cli.output import UsageError, console, print_json, size
from pageferry.cli.picture import LEGEND, OUTSIDE, Cell, cells_of, colours_of, rows_of
from pageferry.cli.values import FILE_COMPLETION, GUEST_NAME_COMPLETION
from pageferry.control.client import open_client
from pageferry.control.info import BlockResidency, Residency
from pageferry.model.errors import PageferryError

SUMMARY = "show where a guest's memory is"

DESCRIPTION = """\
Shows how much of the guest's RAM is resident, swapped, or was never allocated, and a picture of it:
address by address, each cell mixed from the colours of its pages. Without colours, letters: # for
resident, s for swapped, a dot for holes. Nothing is read in to find out. With --output the picture
goes to a file, whose name ends in .png or .svg."""

TERMINAL_ROWS: Final = 16
FILE_COLUMNS: Final = 128
FILE_CELLS: Final = FILE_COLUMNS * 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    guest = parser.add_argument("guest", metavar="GUEST", help="its name, or its QMP socket")
    guest.complete = GUEST_NAME_COMPLETION  # type: ignore[attr-defined]
    output = parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the picture there, as .png or .svg"
    )
    output.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("--cells", type=int, metavar="N", help="parts that a block is cut into")
    parser.add_argument("--json", action="store_true", help="an object; maps only with --cells")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError and PageferryError."""
    kind = arguments.output.suffix.lower() if arguments.output else None
    if kind not in (None, ".png", ".svg"):
        raise UsageError(
            f"{arguments.output}: a picture is written as PNG or SVG",
            advice="give a name that ends in .png or .svg",
        )
    columns = shutil.get_terminal_size().columns - 1
    cells = arguments.cells
    if cells is None and not arguments.json:
        cells = FILE_CELLS if kind else 2 * TERMINAL_ROWS * columns
    async with open_client(arguments.socket) as client:
        found = await client.residency(arguments.guest, cells=cells)
    if arguments.output:
        try:
            _write(arguments.output, kind == ".png", arguments.guest, found)
        except OSError as error:
            raise PageferryError(
                f"cannot write {arguments.output}: {error.strerror}",
                advice="give a place that you may write to",
            ) from error
    if arguments.json:
        print_json(dict(found.raw))
    else:
        shown = console()
        shown.print(_table(found))
        if not arguments.output:
            _draw(shown, found, columns)
    return ExitCode.COMPLETED


def _table(found: Residency) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("RAM BLOCK")
    for heading in ("RESIDENT", "SWAPPED", "HOLES", "TOTAL"):
        table.add_column(heading, justify="right")
    for block in found.blocks:
        table.add_row(block.name, *_sizes(block))
    if len(found.blocks) > 1:
        total = BlockResidency("all", found.resident_bytes, found.swapped_bytes, found.hole_bytes)
        table.add_row("all", *_sizes(total))
    return table


def _sizes(block: BlockResidency) -> list[str]:
    numbers = (block.resident_bytes, block.swapped_bytes, block.hole_bytes, block.length_bytes)
    return [size(number) for number in numbers]


def _draw(console: Console, found: Residency, columns: int) -> None:
    coloured = console.is_terminal and console.color_system is not None
    for block in found.blocks:
        if len(found.blocks) > 1:
            console.print(f"\n{block.name}", highlight=False)
        cells = cells_of(block)
        if coloured:
            console.print(_half_blocks(rows_of(cells, columns), columns))
        else:
            for row in rows_of(cells, 2 * columns):
                # Two cells a letter, since letters are twice as high as wide.
                pairs = [row[first : first + 2] for first in range(0, len(row), 2)]
                console.print("".join(_joined(pair).letter for pair in pairs), highlight=False)
    legend = Text()
    for name, colour, letter in LEGEND:
        mark = ("██", Style(color=Color.from_rgb(*colour))) if coloured else letter
        legend.append_text(Text.assemble(mark, f" {name}   "))
    console.print(legend)


def _joined(cells: list[Cell]) -> Cell:
    count = len(cells)
    return Cell(sum(c.resident for c in cells) / count, sum(c.swapped for c in cells) / count)


def _half_blocks(rows: list[list[Cell]], columns: int) -> Text:
    """Two rows of cells in one of letters: the upper one in front, the lower one behind."""
    colours = colours_of(rows, columns)
    if len(colours) % 2:
        colours.append([OUTSIDE] * columns)
    text = Text(no_wrap=True)
    for upper, lower in zip(colours[::2], colours[1::2], strict=True):
        for front, behind in zip(upper, lower, strict=True):
            style = Style(color=Color.from_rgb(*front), bgcolor=Color.from_rgb(*behind))
            text.append("▀", style)
        text.append("\n")
    text.rstrip()
    return text


def _write(path: Path, as_png: bool, guest: str, found: Residency) -> None:
    pictures = []
    for block in found.blocks:
        rows = colours_of(rows_of(cells_of(block), FILE_COLUMNS), FILE_COLUMNS)
        pictures.append((f"{block.name}: {', '.join(_words(block))}", rows))
    if as_png:
        gap = [[OUTSIDE] * FILE_COLUMNS]
        stacked = [row for _name, rows in pictures for row in (*rows, *gap)][:-1]
        path.write_bytes(png(stacked))
    else:
        path.write_text(svg(f"RAM of {guest}", pictures), encoding="utf-8")


def _words(block: BlockResidency) -> list[str]:
    numbers = (block.resident_bytes, block.swapped_bytes, block.hole_bytes)
    return [f"{size(number)} {name}" for number, (name, _, _) in zip(numbers, LEGEND, strict=True)]
