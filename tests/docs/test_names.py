"""Names in backticks: keys, options, metrics, files and exit statuses that prose speaks of exist.

Names of other programs are listed in names_of_others.txt, so that a name of ours that was changed
cannot hide among them.
"""

from __future__ import annotations

import ast
import fnmatch
import re
from pathlib import Path

import pytest

from pageferry.certificates.files import DEFAULT_DIRECTORY
from pageferry.cli.exit_codes import MEANINGS
from pageferry.daemon.config_keys import KEYS, TABLES
from pageferry.daemon.main import make_parser as make_daemon_parser
from pageferry.model.parameters import KEYS as PARAMETERS
from pageferry.reference.markdown import metric_families
from pageferry.wire.messages import _FIELDS as WIRE_FIELDS
from tests.docs.command_lines import options_of, parsers_by_verb
from tests.docs.pages import ROOT, WRITTEN_BY_PROGRAM, Page, pages

OTHERS = frozenset(
    line
    for line in (Path(__file__).parent / "names_of_others.txt").read_text().splitlines()
    if line and not line.startswith("#")
)

READ = [page for page in pages() if page.name not in WRITTEN_BY_PROGRAM]

PACKAGE = ROOT / "agent" / "pageferry"

WORD = r"[a-z]+(?:-[a-z0-9]+)+"


EXAMPLES = ROOT / "docs" / "examples"


def spelled(*folders: Path) -> set[str]:
    """Every text that stands by itself in the sources below these folders."""
    return {
        node.value
        for folder in folders
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def our_words() -> set[str]:
    """Every name with a hyphen that the sources spell: keys, parameters, commands, members, phases,
    kinds of errors, names of processes.
    """
    words = {message_type.name for message_type in WIRE_FIELDS}
    words |= {key for fields in WIRE_FIELDS.values() for _attribute, key, _kind in fields}
    return {word for word in words | spelled(PACKAGE) if re.fullmatch(WORD, word)}


OUR_WORDS = our_words()

OUR_OPTIONS = set.union(
    options_of(make_daemon_parser()),
    *(options_of(parser) for parser in parsers_by_verb().values()),
    {text for text in spelled(EXAMPLES) if text.startswith("--")},
)

METRICS = {
    family.name + suffix
    for family in metric_families()
    for suffix in {
        "counter": ("_total",),
        "info": ("_info",),
        "histogram": ("", "_bucket", "_sum", "_count"),
    }.get(family.type, ("",))
}

FILES_MADE = {"history.jsonl", "pageferryd.toml", "lock"}

TABLE_KEYS = {(key.table.partition(".")[0], key.key) for key in KEYS} | {
    ("defaults", key) for key in PARAMETERS.values()
}


def fault_of(span: str, folder: Path) -> str | None:
    """What is wrong with the words of one span in backticks; None where nothing is."""
    if any(
        fnmatch.fnmatchcase(word, name)
        for word in (span, span.split(" ", maxsplit=1)[0])
        for name in OTHERS
    ):
        return None
    if found := re.fullmatch(r"\[([a-z]+)(?:\.[\w.\"-]+)?\](?: ([a-z-]+)(?: = .+)?)?", span):
        return _fault_of_key(found[1], found[2])
    if re.fullmatch(r"[\w./-]+(\.(py|c|h|toml|md|json|yml|svg|sh)|/)", span):
        return None if _is_there(span, folder) else "no such file"
    for pattern, known, what in NAMES:
        if (found := re.fullmatch(pattern, span)) and found[1] not in known:
            return f"no {what} of ours; those of other programs belong into names_of_others.txt"
    return None


NAMES = (
    (rf"({WORD})(?:[ =].*)?", OUR_WORDS, "name"),
    (r"(pageferry_[a-z_]+)(?:\{.*\})?", METRICS, "metric"),
    (r"(--[a-z][a-z-]*)(?:[ =].*)?", OUR_OPTIONS, "option"),
)


def _fault_of_key(table: str, key: str | None) -> str | None:
    if table not in {name.partition(".")[0] for name in TABLES}:
        return "no table of the configuration"
    if key and (table, key) not in TABLE_KEYS:
        return "no key of that table"
    return None


def _is_there(path: str, folder: Path) -> bool:
    if path.startswith(("/", "~", ".cache/")) or path in FILES_MADE:
        return True
    bases = (ROOT, PACKAGE, folder, EXAMPLES, ROOT / "kernel-patches")
    return any((base / path).exists() for base in bases)


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_names_in_backticks_exist(page: Page) -> None:
    faults = {
        f"`{span}`: {fault}" for span in page.spans() if (fault := fault_of(span, page.path.parent))
    }
    assert faults == set()


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_exit_statuses_exist(page: Page) -> None:
    named = re.findall(r"[Ee]xit (?:status|code)s? `?(\d+)", page.prose)
    assert {int(number) for number in named} <= {int(code) for code in MEANINGS}


def test_every_name_of_others_is_used() -> None:
    used = {word for page in READ for span in page.spans() for word in (span, span.split(" ")[0])}
    assert {name for name in OTHERS if not fnmatch.filter(used, name)} == set()


@pytest.mark.parametrize(
    "span",
    [
        "downtime-limits",
        "[daemon] channels",
        "[demon]",
        "pageferry_sent_bytes",
        "--verfy",
        "migration/gone.py",
        "page-window = 1",
    ],
)
def test_faults_of_names_are_seen(span: str) -> None:
    assert fault_of(span, ROOT / "docs")


@pytest.mark.parametrize(
    "span",
    [
        "downtime-limit",
        "[metrics] listen",
        '[peers."a"]',
        "pageferry_sent_bytes_total",
        "pageferry_migration_downtime_seconds_bucket",
        "--verify",
        "migration/commit.py",
        "take-back",
        str(DEFAULT_DIRECTORY),
    ],
)
def test_right_names_pass(span: str) -> None:
    assert fault_of(span, ROOT / "docs") is None
