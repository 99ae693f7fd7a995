"""Configuration and QMP in the documents, held against what the daemon takes."""

from __future__ import annotations

import grp
import json
import pwd
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from pageferry.control import declarations
from pageferry.control.errors import CommandError
from pageferry.control.schema import Struct, check
from pageferry.daemon.config import ConfigError, parse_config
from pageferry.reference.markdown import all_declarations
from tests.docs.pages import Block, Page, pages

COMMANDS = {declaration.name: declaration for declaration in all_declarations()}
EVENTS = {event.name: event for event in declarations.EVENTS}


@pytest.fixture(autouse=True)
def _whoever_is_named_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups and users that examples name need not be on this host."""
    user = pwd.getpwuid(0)
    monkeypatch.setattr(grp, "getgrnam", lambda _name: grp.struct_group(("g", "x", 1, [])))
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: user)


def configurations(page: Page) -> Iterator[Block]:
    """Blocks of pageferryd.toml: fenced ones by their language, others by how they begin."""
    for block in page.blocks:
        if block.language == "toml" or (
            not block.language and re.match(r"(#.*\n)*\[[\w.\"-]+\]\s*(#.*)?\n", block.text)
        ):
            yield block


TABLES = ("", "[daemon]\n", "[defaults]\n", '[guests.web1]\nqmp = "/run/qemu/web1.qmp"\n')
"""Where keys may belong that stand alone in an example."""


def configuration_fault(text: str) -> str | None:
    """What the daemon has against a configuration, or a part of one.

    Tables that are left out have defaults; keys without a table are tried in each; `, ...]` stands
    for more of a list.
    """
    text = text.replace(", ...]", "]")
    has_table = re.search(r"^\[", text, re.MULTILINE)
    faults = []
    for table in TABLES[:1] if has_table else TABLES[1:]:
        try:
            parse_config(table + text, "the example")
        except ConfigError as error:
            faults.append(f"{error.message}; {error.advice}")
        else:
            return None
    return "; or ".join(faults)


def configurations_in_here_documents(page: Page) -> Iterator[str]:
    """What shell blocks write into files that end in .toml."""
    for block in page.blocks:
        for match in re.finditer(
            r"[^\n]*\.toml[^\n]*<<-?\s*'?(\w+)'?\n(.*?)\n\1\n", block.text, re.DOTALL
        ):
            yield match[2]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_configurations_are_taken(page: Page) -> None:
    texts = [block.text for block in configurations(page)]
    texts += configurations_in_here_documents(page)
    assert [(text, fault) for text in texts if (fault := configuration_fault(text))] == []


def qmp_messages(block: Block) -> Iterator[dict[str, Any]]:
    """Objects of a JSON block, one or many."""
    decoder = json.JSONDecoder()
    rest = re.sub(r"^(->|<-) ", "", block.text, flags=re.MULTILINE).strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        yield from value if isinstance(value, list) else [value]
        rest = rest[end:].strip()


def qmp_fault(message: dict[str, Any]) -> str | None:
    """What the control socket would have against a message, or our own declaration against an
    event.
    """
    name = message.get("execute", message.get("event"))
    if name is None:
        return None
    if "execute" in message:
        if name not in COMMANDS:
            return f"there is no command {name}"
        kind, value = COMMANDS[name].argument_type, message.get("arguments", {})
    else:
        if name not in EVENTS:
            return None if str(name).islower() else f"there is no event {name}"
        kind, value = Struct(name, EVENTS[name].members), message.get("data", {})
    try:
        check(kind, value, "")
    except CommandError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_qmp_messages_are_right(page: Page) -> None:
    faults = [
        (message, fault)
        for block in page.blocks
        if block.language == "json"
        for message in qmp_messages(block)
        if (fault := qmp_fault(message))
    ]
    assert faults == []


def test_faults_of_configurations_are_seen() -> None:
    assert configuration_fault('[daemon]\nlisten = "0.0.0.0:49400"\n') is None
    assert "did you mean listen?" in str(configuration_fault('[daemon]\nlisen = "a:1"\n'))
    assert configuration_fault("[defaults]\nchannels = 65\n")
    assert configuration_fault("channels = 4\n") is None
    assert configuration_fault('guest-sockets = "/run/{name}.qmp"\n') is None
    assert configuration_fault("chanels = 4\n")
    assert tomllib.loads('[peers."a.example"]\nmay-send = ["*"]\n')
    page = Page(
        pages()[0].path,
        blocks=[Block("sh", "cat >/etc/x.toml <<'EOF'\n[daemon]\nlisen = 1\nEOF\necho\n", 1)],
    )
    assert [bool(configuration_fault(text)) for text in configurations_in_here_documents(page)] == [
        True
    ]


@pytest.mark.parametrize(
    ("message", "has_fault"),
    [
        ('{"execute": "migrate", "arguments": {"guest": "web1", "uri": "host-b"}}', False),
        ('{"execute": "migrate", "arguments": {"guest": "web1"}}', True),
        ('{"execute": "query-nothing"}', True),
        ('{"return": {}}', False),
        ('{"event": "MIGRATION_NONE", "data": {}}', True),
        ('{"event": "MIGRATION", "data": {"status": "active"}}', True),
        ('{"event": "finished", "status": "failed"}', False),
    ],
)
def test_faults_of_messages_are_seen(message: str, has_fault: bool) -> None:
    (found,) = qmp_messages(Block("json", f"-> {message}\n", 1))
    assert bool(qmp_fault(found)) is has_fault
