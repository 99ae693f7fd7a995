"""The reference and the manual pages: current, complete, and good roff."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pageferry.cli.exit_codes import MEANINGS
from pageferry.cli.main import VERBS, make_parser
from pageferry.control import declarations
from pageferry.daemon import config, launches
from pageferry.daemon.config_keys import KEYS, TABLES
from pageferry.daemon.main import make_parser as make_daemon_parser
from pageferry.daemon.reloading import NEEDS_RESTART
from pageferry.model.parameters import KEYS as PARAMETER_KEYS
from pageferry.reference.markdown import all_declarations, metric_families, reference
from pageferry.reference.roff import all_verbs, pages, quote
from tests.support import need

ROOT = Path(__file__).parents[2]


def test_reference_and_manual_are_current() -> None:
    advice = "run make reference"
    assert (ROOT / "docs" / "reference.md").read_text() == reference(), advice
    for name, text in pages().items():
        assert (ROOT / "deploy" / "man" / name).read_text() == text, advice


def test_every_key_of_the_configuration_is_described() -> None:
    described = {(key.table, key.key) for key in KEYS}
    read = {("daemon", key) for key in config._DAEMON_KEYS}
    read |= {("metrics", key) for key in config._METRICS_KEYS}
    read |= {("guests.NAME", key) for key in config._GUEST_KEYS}
    read |= {("tls", key) for key in config._TLS_KEYS}
    read |= {("peers.NAME", key) for key in config._PEER_KEYS}
    read |= {("launch-from-source", key) for key in launches.FOLLOW_KEYS}
    assert described == read
    assert {key.table for key in KEYS} | {"defaults"} == set(TABLES)
    waiting = {key.key for key in KEYS if key.needs_restart}
    assert waiting == {key.partition(" in ")[0] for key in NEEDS_RESTART.values()}


def test_reference_names_everything() -> None:
    text = reference()
    for declaration in all_declarations():
        assert f"### `{declaration.name}`" in text
        for member in declaration.arguments:
            assert f"| `{member.name}` |" in text
    for event in declarations.EVENTS:
        assert f"### `{event.name}`" in text
    for family in metric_families():
        if family.name.startswith("pageferry_"):
            assert f"| `{family.name}" in text
            assert family.documentation
    for code in MEANINGS:
        assert f"| {int(code)} |" in text
    for key in PARAMETER_KEYS.values():
        assert f"| `{key}` |" in text


def test_links_within_the_reference_lead_somewhere() -> None:
    text = reference()
    headings = re.findall(r"^#+ (?:<a name=\"([a-z]+)\"></a>)?(.*)$", text, re.MULTILINE)
    anchors = {name for name, _ in headings if name}
    anchors |= {title.lower().replace("`", "").replace(" ", "-") for _, title in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def test_manual_names_every_verb_and_option() -> None:
    text = pages()["pageferry.1"]
    sections = dict(re.findall(r"^\.SS (.+?)$(.*?)(?=^\.S[SH] )", text, re.MULTILINE | re.DOTALL))
    verbs = dict(all_verbs(make_parser()))
    assert set(sections) == set(verbs) > set(VERBS)
    for verb, parser in verbs.items():
        for option in options_of(parser):
            assert f"\\fB{quote(option)}\\fR" in sections[verb], f"{verb} {option}"
    for option in options_of(make_daemon_parser()):
        assert f"\\fB{quote(option)}\\fR" in pages()["pageferryd.8"]


def test_every_option_and_argument_says_what_it_is() -> None:
    for verb, parser in all_verbs(make_parser()):
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help, f"{verb}: {action.dest}"


def test_quoting() -> None:
    assert quote(".TH is text, a-b and c\\d") == "\\&.TH is text, a\\-b and c\\ed"
    assert quote("one\n'two") == "one\n\\&'two"


@pytest.mark.parametrize("name", sorted(pages()))
def test_groff_renders_the_page_without_a_warning(name: str) -> None:
    need(shutil.which("groff") is not None, "needs groff")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", str(ROOT / "deploy" / "man" / name)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert f"{name[:-2].upper()}({name[-1]})" in done.stdout
