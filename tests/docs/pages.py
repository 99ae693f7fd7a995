"""The Markdown pages as tests see them: anchors, links, code, words in backticks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

WRITTEN_BY_PROGRAM = ("docs/reference.md",)
"""Names everything by being written from it; a test of its own compares it."""

_FENCE = re.compile(r"^( *)```(\S*)\s*$")
_HEADING = re.compile(r"^#{1,6} +(.*?)\s*#*$")
_LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)")
_SPAN = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A code block. `language` is empty of an indented one; `line` is that of its first line."""

    language: str
    text: str
    line: int


@dataclass(slots=True)
class Page:
    """One page, taken apart."""

    path: Path
    prose: str = ""
    blocks: list[Block] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The page's path in the repository."""
        return str(self.path.relative_to(ROOT))

    def links(self) -> Iterator[str]:
        """What the page links to or shows, as it is written."""
        for match in _LINK.finditer(_SPAN.sub("", self.prose)):
            yield match[1]

    def spans(self) -> Iterator[str]:
        """What stands in backticks, in one line each."""
        for match in _SPAN.finditer(self.prose):
            yield " ".join(match[2].split())


def page_paths() -> list[Path]:
    """Every page that people read."""
    return [ROOT / "README.md", ROOT / "kernel-patches" / "README.md", *ROOT.glob("docs/**/*.md")]


@cache
def pages() -> tuple[Page, ...]:
    """All pages, in the order of their paths."""
    return tuple(read_page(path) for path in sorted(page_paths()))


def read_page(path: Path) -> Page:
    """Take a page apart. Blocks are fenced, or indented by four spaces after an empty line."""
    page = Page(path)
    prose: list[str] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    number = 0
    in_list = False
    while number < len(lines):
        line = lines[number]
        if fence := _FENCE.match(line):
            number = _fenced(page, lines, number, fence)
        elif _begins_indented(lines, number) and not in_list:
            number = _indented(page, lines, number)
        else:
            if heading := _HEADING.match(line):
                page.anchors.add(_unique(anchor_of(heading[1]), page.anchors))
            page.anchors |= set(re.findall(r'<a (?:name|id)="([^"]+)">', line))
            if line.strip():
                in_list = bool(re.match(r"\s*([-*]|\d+\.) ", line)) or (
                    in_list and line.startswith(" ")
                )
            prose.append(line)
            number += 1
    page.prose = "\n".join(prose)
    return page


def _fenced(page: Page, lines: list[str], number: int, fence: re.Match[str]) -> int:
    end = number + 1
    while end < len(lines) and lines[end].strip() != "```":
        end += 1
    indent = len(fence[1])
    text = "\n".join(line[indent:] for line in lines[number + 1 : end])
    page.blocks.append(Block(fence[2], text + "\n", number + 2))
    return end + 1


def _begins_indented(lines: list[str], number: int) -> bool:
    return lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip())


def _indented(page: Page, lines: list[str], number: int) -> int:
    end = number
    while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
        end += 1
    text = "\n".join(line[4:] for line in lines[number:end]).rstrip()
    page.blocks.append(Block("", text + "\n", number + 1))
    return end


def anchor_of(title: str) -> str:
    """What a heading is linked to by, as GitHub makes it."""
    text = re.sub(r"<[^>]+>", "", title)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"[^\w\- ]", "", text.lower())
    return text.replace(" ", "-")


def _unique(anchor: str, taken: set[str]) -> str:
    if anchor not in taken:
        return anchor
    number = 1
    while f"{anchor}-{number}" in taken:
        number += 1
    return f"{anchor}-{number}"
