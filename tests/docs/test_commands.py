"""Commands that the documents name: parsed as they would be when they are run, but not run."""

from __future__ import annotations

import pytest

from tests.docs.command_lines import (
    command_lines,
    fault_of,
    fault_of_mention,
    make_faults,
    simple_commands,
)
from tests.docs.pages import Block, Page, pages


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_command_lines_are_understood(page: Page) -> None:
    faults = [
        f"line {block.line}: {' '.join(words)}: {fault}"
        for block in page.blocks
        for words in command_lines(block)
        if (fault := fault_of(words))
    ]
    assert faults == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_commands_in_sentences_are_there(page: Page) -> None:
    faults = [
        f"`{span}`: {fault}"
        for span in page.spans()
        if span.startswith(("pageferry ", "pageferryd "))
        for words in simple_commands(span)
        if (fault := fault_of_mention(words))
    ]
    assert faults == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_make_targets_are_there(page: Page) -> None:
    faults: list[str] = []
    for block in page.blocks:
        for words in command_lines(block):
            if words[0] == "cd":
                break  # what follows is made elsewhere
            faults += make_faults(words)
    for span in page.spans():
        for words in simple_commands(span):
            faults += make_faults(words)
    assert faults == []


@pytest.mark.parametrize(
    ("line", "has_fault"),
    [
        ("pageferry migrate web1 host-b --json", False),
        ("PAGEFERRY_SOCKET=/run/a.sock /opt/bin/pageferry cancel web1 && echo done", False),
        ("pageferry migrate web1 host-b --frobnicate", True),
        ("pageferry migrate web1", True),
        ("echo | pageferry frob", True),
        ("ssh root@host-b pageferry frob", True),
        ("pageferryd --check --config /etc/x.toml >/dev/null 2>&1", False),
        ("pageferryd --nothing", True),
    ],
)
def test_faults_are_seen(line: str, has_fault: bool) -> None:
    block = Block("sh", f"# a comment\n{line}\n", 1)
    found = [words for words in command_lines(block) if "pageferry" in words[0]]
    assert len(found) == 1
    assert bool(fault_of(found[0])) is has_fault


def test_faults_of_mentions_are_seen() -> None:
    assert fault_of_mention(["pageferry", "set"]) is None
    assert fault_of_mention(["pageferry", "certs", "init", "--ca"]) is None
    assert fault_of_mention(["pageferry", "settle"]) == "there is no verb settle"
    assert fault_of_mention(["pageferry", "status", "--verify"]) == "status has no option --verify"


def test_faults_of_make_are_seen() -> None:
    block = Block("", "make bench QUICK=1    one short run\nmake benchmark SLOW=1\n", 1)
    first, second = command_lines(block)
    assert make_faults(first) == []
    assert make_faults(second) == ["benchmark", "SLOW=1"]


def test_lines_are_put_together_and_here_documents_left_out() -> None:
    text = (
        "pageferry migrate web1 \\\n    host-b\ncat >file <<'EOF'\npageferry frob\nEOF\nmake test\n"
    )
    assert [words[0] for words in command_lines(Block("sh", text, 1))] == [
        "pageferry",
        "cat",
        "make",
    ]
