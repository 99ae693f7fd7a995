"""Pictures as files: PNG (RFC 2083, by way of zlib) and SVG. Both are a few lines of text around
the data, which is why no library is asked."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from pageferry.cli.picture import LEGEND, Colour

Rectangle = Sequence[Sequence[Colour]]

CELL_PIXELS = 6
"""Side of a cell in either kind of file."""

_MARGIN, _LINE, _SWATCH = 12, 18, 12


def png(rows: Rectangle, scale: int = CELL_PIXELS) -> bytes:
    """A PNG of *rows*, each colour a square of *scale* pixels: 8 bits a channel, no alpha."""
    width, height = len(rows[0]) * scale, len(rows) * scale
    lines = bytearray()
    for row in rows:
        line = b"\0" + b"".join(bytes(colour) * scale for colour in row)  # 0: no filter
        lines += line * scale
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", header),
            (b"IDAT", zlib.compress(bytes(lines), 9)),
            (b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def svg(title: str, blocks: Sequence[tuple[str, Rectangle]], scale: int = CELL_PIXELS) -> str:
    """An SVG with a title, a legend, and a picture for each of the named *blocks*."""
    width = max(len(rows[0]) for _name, rows in blocks) * scale + 2 * _MARGIN
    parts = [_text(_MARGIN, _MARGIN + 8, title, bold=True)]
    top = _MARGIN + 2 * _LINE
    left = _MARGIN
    for name, colour, _letter in LEGEND:
        parts.append(_rect(left, top - _SWATCH, _SWATCH, _SWATCH, colour))
        parts.append(_text(left + _SWATCH + 4, top - 2, name))
        left += 110
    top += _LINE
    for name, rows in blocks:
        parts.append(_text(_MARGIN, top + 8, name))
        top += _LINE
        parts.append('<g shape-rendering="crispEdges">')
        for number, row in enumerate(rows):
            column = 0
            for colour, cells in groupby(row):
                count = len(list(cells))
                place = (_MARGIN + column * scale, top + number * scale)
                parts.append(_rect(*place, count * scale, scale, colour))
                column += count
        parts.append("</g>")
        top += len(rows) * scale + _LINE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}"'
        f' viewBox="0 0 {width} {top}" font-family="sans-serif" font-size="13">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _rect(left: int, top: int, width: int, height: int, colour: Colour) -> str:
    red, green, blue = colour
    return (
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}"'
        f' fill="#{red:02x}{green:02x}{blue:02x}"/>'
    )


def _text(left: int, top: int, text: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{left}" y="{top}"{weight}>{escape(text)}</text>'
