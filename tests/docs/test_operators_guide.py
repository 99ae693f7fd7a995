"""docs/operators-guide.md speaks of everything that it must, in the words of the program."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from pageferry.certificates.files import Side
from pageferry.cli.exit_codes import MEANINGS
from pageferry.cli.output import UsageError
from pageferry.control.client import DaemonUnreachableError
from pageferry.control.types import ERROR
from pageferry.daemon.config import ConfigError
from pageferry.model.errors import PageferryError
from pageferry.model.parameters import KEYS
from tests.docs.pages import ROOT, read_page

PAGE = read_page(ROOT / "docs" / "operators-guide.md")

GAP = "…"


def section(title: str) -> str:
    """The part of the page below a heading, up to the next of its rank or a higher one."""
    text = PAGE.prose
    found = re.search(rf"^(#+) {re.escape(title)}$(.*?)(?=^#{{1,2}} |\Z)", text, re.M | re.S)
    assert found, title
    return found[2]


def first_cells(text: str) -> list[str]:
    """The first cell of each row of the tables in a text."""
    return [cell.strip() for cell in re.findall(r"^\| (.*?) \|", text, re.M)]


def test_every_parameter_is_spoken_of() -> None:
    cells = " ".join(first_cells(section("Parameters, and when to change them")))
    assert set(re.findall(r"`([a-z-]+)`", cells)) == set(KEYS.values())


def test_every_exit_status_is_spoken_of() -> None:
    cells = first_cells(section("When something fails"))
    assert {int(cell) for cell in cells if cell.isdigit()} == {int(code) for code in MEANINGS}


def all_kinds() -> set[str]:
    def below(kind: type[PageferryError]) -> Iterator[type[PageferryError]]:
        yield kind
        for each in kind.__subclasses__():
            yield from below(each)

    # Those that no operator sees by themselves inherit their kind.
    assert {ConfigError, DaemonUnreachableError, UsageError} <= set(below(PageferryError))
    return {kind.kind for kind in below(PageferryError)} | {"denied"}


def test_every_kind_of_error_is_spoken_of() -> None:
    cells = first_cells(section("When something fails"))
    named = [cell for cell in cells if re.fullmatch(r"(`[a-z-]+`(, )?)+", cell)]
    assert set(re.findall(r"`([a-z-]+)`", " ".join(named))) - {"kind"} == all_kinds()


def test_control_socket_names_every_kind_of_error() -> None:
    (kind,) = (member for member in ERROR.members if member.name == "kind")
    assert set(kind.doc.split(", ")) == all_kinds() - {"unreachable", "usage"}


def test_every_certificate_file_is_spoken_of() -> None:
    text = section("Certificates and peers")
    for side in Side:
        assert f"`{side.certificate}`" in text


def templates() -> set[str]:
    """Every text in the sources, with `…` in the place of what is filled in."""
    found = set()
    for path in (ROOT / "agent" / "pageferry").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else GAP for part in node.values
                )
                found.add("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(re.sub(r"\{\w+\}", GAP, node.value))
    return found


def is_said(refusal: str, sources: set[str]) -> bool:
    """Whether the program has a text in which the pieces of *refusal* follow each other."""
    pieces = [re.escape(piece) for piece in refusal.strip(GAP).split(GAP)]
    wanted = re.compile(".*?".join(pieces), re.S)
    return any(wanted.search(text) for text in sources)


REFUSALS = [
    refusal
    for cell in first_cells(section("Refusals, and what to do"))
    for refusal in re.findall(r"`([^`]+)`", cell)
]


def test_there_are_refusals() -> None:
    assert len(REFUSALS) > 20


@pytest.fixture(scope="module")
def sources() -> set[str]:
    return templates()


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusal_is_in_the_words_of_the_program(refusal: str, sources: set[str]) -> None:
    assert is_said(refusal, sources)


def test_a_changed_refusal_is_seen(sources: set[str]) -> None:
    assert not is_said("RAM block … is not splendid", sources)
