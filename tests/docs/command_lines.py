"""Command lines in the documents: found in blocks and spans, read by the programs' own parsers."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from pageferry.cli.main import make_parser
from pageferry.daemon.main import make_parser as make_daemon_parser
from tests.docs.pages import ROOT, Block

SHELL = ("", "sh", "bash", "console")
"""Languages of blocks that may hold command lines."""

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*")
_BEFORE_A_COMMAND = {"sudo", "exec", "nohup", "time", "then", "do", "else", "if", "!", "&&", "||"}
_SEPARATORS = {"|", "||", "&", "&&", ";", "(", ")", ";;", "|&", "{", "}"}
_PROMPT = re.compile(r"^(?:\S*[#$] )?")


def command_lines(block: Block) -> Iterator[list[str]]:
    """The words of every simple command in a block of shell; none of other languages."""
    if block.language not in SHELL:
        return
    for line in _joined(block.text):
        # What follows after two spaces says what the command is for.
        bare = re.split(r"\s{2,}|(?:^|\s)#", _PROMPT.sub("", line.strip(), count=1))[0]
        yield from simple_commands(bare)


def simple_commands(line: str) -> Iterator[list[str]]:
    """The simple commands of one line of shell, without what stands before the program's name."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.commenters = ""
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # an open quote: no shell, but a sentence with an apostrophe
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if word in _SEPARATORS:
            yield from _bare(command)
            command = []
        else:
            command.append(word)


def _bare(command: Sequence[str]) -> Iterator[list[str]]:
    words = [*_without_redirections(command)]
    while words and (words[0] in _BEFORE_A_COMMAND or _ASSIGNMENT.fullmatch(words[0])):
        words = words[1:]
    if words[:1] == ["ssh"] and len(words) > 2:
        yield from _bare(words[2:])
    elif words:
        yield words


def _without_redirections(words: Sequence[str]) -> Iterator[str]:
    skip = False
    for word, after in zip(words, [*words[1:], ""], strict=False):
        if skip:
            skip = False
        elif _is_redirection(word):
            skip = True
        elif not (word.isdigit() and _is_redirection(after)):
            yield word


def _is_redirection(word: str) -> bool:
    return bool(word) and set(word) <= {"<", ">", "&"}


def _joined(text: str) -> Iterator[str]:
    """Lines, with those put together that end in a backslash; here-documents are left out."""
    waiting, until = "", ""
    for line in text.splitlines():
        if until:
            until = "" if line.strip() == until else until
            continue
        if line.rstrip().endswith("\\"):
            waiting += line.rstrip()[:-1].strip() + " "
            continue
        whole, waiting = waiting + (line.strip() if waiting else line), ""
        if found := re.search(r"<<-?\s*['\"]?(\w+)['\"]?", whole):
            until = found[1]
            whole = whole[: found.start()] + whole[found.end() :]
        yield whole


def fault_of(words: Sequence[str]) -> str | None:
    """What the program's own parser has against the command line; None where there is nothing, or
    the program is not ours.
    """
    name = Path(words[0]).name
    parser = {"pageferry": make_parser, "pageferryd": make_daemon_parser}.get(name)
    if parser is None:
        return None
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            parser().parse_args(list(words[1:]))
        except SystemExit as ended:
            return errors.getvalue().strip().splitlines()[-1] if ended.code else None
    return None


def fault_of_mention(words: Sequence[str]) -> str | None:
    """The same for a mention within a sentence, which may leave arguments out."""
    if Path(words[0]).name != "pageferry" or len(words) == 1:
        return fault_of(words)
    parsers = parsers_by_verb()
    verb = next((word for word in words[1:] if not word.startswith("-")), None)
    if verb is None or verb == "VERB":
        return None
    if verb not in parsers:
        return f"there is no verb {verb}"
    deeper = f"{verb} {words[2]}" if len(words) > 2 else verb
    known = options_of(parsers.get(deeper, parsers[verb]))
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in known:
            return f"{verb} has no option {option}"
    return None


def parsers_by_verb() -> dict[str, argparse.ArgumentParser]:
    """The parser of each verb, and of "certs init" and the like."""
    return dict(_verbs(make_parser(), ""))


def _verbs(
    parser: argparse.ArgumentParser, before: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                yield f"{before}{name}", verb
                yield from _verbs(verb, f"{name} ")


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every option string of a parser."""
    return {option for action in parser._actions for option in action.option_strings}


def make_faults(words: Sequence[str]) -> list[str]:
    """Targets and variables of a make command line that our Makefile does not have."""
    if words[0] != "make":
        return []
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+)\s*:?=", text, re.MULTILINE))
    given = list(words[1:])
    unknown = [word for word in given if "=" not in word and word not in targets]
    return unknown + [
        word for word in given if "=" in word and word.partition("=")[0] not in variables
    ]
