"""Manual pages, from the parsers of the command lines and the tables of the reference."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from pageferry import __version__
from pageferry.cli.exit_codes import MEANINGS
from pageferry.cli.main import SOCKET_VARIABLE, make_parser
from pageferry.control.schema import Builtin, Enum
from pageferry.control.types import PARAMETERS
from pageferry.daemon.config import DEFAULT_PATH
from pageferry.daemon.config_keys import KEYS, TABLES
from pageferry.daemon.main import make_parser as make_daemon_parser
from pageferry.model.parameters import CHANGEABLE, MigrationParameters
from pageferry.reference.markdown import toml


def pages() -> dict[str, str]:
    """Each page by its file's name."""
    return {
        "pageferry.1": _joined(_pageferry()),
        "pageferryd.8": _joined(_pageferryd()),
        "pageferryd.toml.5": _joined(_configuration()),
    }


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def quote(text: str) -> str:
    """*text* as roff prints it: no escapes, no requests, plain hyphens."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").split("\n")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


def _head(name: str, section: int, summary: str) -> Iterator[str]:
    yield '.\\" Written by make reference'
    yield f'.TH {name.upper()} {section} "" "pageferry {__version__}" "pageferry"'
    yield ".SH NAME"
    yield f"{name} \\- {quote(summary)}"


def _paragraphs(text: str) -> Iterator[str]:
    """Text with blank lines between paragraphs; indented lines stay as they are."""
    for paragraph in text.strip().split("\n\n"):
        yield ".PP"
        if paragraph.startswith("  "):
            yield from (".nf", quote(paragraph), ".fi")
        else:
            yield quote(paragraph)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        yield ".TP"
        yield _signature(action)
        yield quote((action.help or "").replace("%(prog)s", parser.prog))


def _signature(action: argparse.Action) -> str:
    placeholder = str(action.metavar or ("|".join(action.choices) if action.choices else ""))
    value = f" \\fI{quote(placeholder)}\\fR" if action.nargs != 0 and placeholder else ""
    if not action.option_strings:
        return value.strip() or f"\\fI{quote(action.dest)}\\fR"
    return ", ".join(f"\\fB{quote(option)}\\fR{value}" for option in action.option_strings)


def _usage(parser: argparse.ArgumentParser) -> str:
    # A width that no terminal has: roff breaks the lines.
    formatter = argparse.HelpFormatter(parser.prog, width=10_000)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    return quote(formatter.format_help().removeprefix("usage: ").strip())


def _verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def all_verbs(
    parser: argparse.ArgumentParser, prefix: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each verb and each verb of a verb, as ``certs init``, with its parser."""
    for name, verb in _verbs(parser).items():
        yield prefix + name, verb
        yield from all_verbs(verb, f"{prefix}{name} ")


def _pageferry() -> Iterator[str]:
    parser = make_parser()
    yield from _head("pageferry", 1, "carry running QEMU guests to other hosts")
    yield from (".SH SYNOPSIS", ".B pageferry", "\\fIVERB\\fR ...")
    yield ".SH DESCRIPTION"
    yield from _paragraphs(
        "Speaks to pageferryd(8) of this host, which carries running guests to other hosts and"
        " keeps what lies in swap in swap.\n\n"
        "A guest is given by the name that the daemon knows, or by the path of its QMP socket; a"
        " migration by its guest, its ID, or how its ID begins."
    )
    yield ".SH OPTIONS"
    yield from _options(parser)
    yield ".SH VERBS"
    for name, verb in all_verbs(parser):
        yield f".SS {quote(name)}"
        yield _usage(verb)
        yield from _paragraphs(verb.description or "")
        yield from _options(verb)
    yield ".SH EXIT STATUS"
    for code, meaning in MEANINGS.items():
        yield f".TP\n.B {int(code)}\n{quote(meaning)}"
    yield ".SH ENVIRONMENT"
    yield f".TP\n.B {quote(SOCKET_VARIABLE)}"
    yield quote("The daemon's control socket, where --socket is not given.")
    yield from (".SH SEE ALSO", ".BR pageferryd (8),", ".BR pageferryd.toml (5)")


def _pageferryd() -> Iterator[str]:
    parser = make_daemon_parser()
    yield from _head("pageferryd", 8, "the agent that carries guests to and from other hosts")
    yield from (".SH SYNOPSIS", _usage(parser))
    yield ".SH DESCRIPTION"
    yield from _paragraphs(
        "One runs on each host. It answers commands on its control socket, which speaks QMP, and"
        " connections of other agents; each migration has a worker process of its own.\n\n"
        "Exit status 0 after a signal, 1 when it cannot start."
    )
    yield ".SH OPTIONS"
    yield from _options(parser)
    yield ".SH SIGNALS"
    for name, meaning in (
        (
            "SIGTERM",
            "End. Under systemd, migrations go on, and the next daemon takes them over; when there"
            " is to be none, systemd's store of descriptors is emptied, which cancels them. Without"
            " systemd they are cancelled and waited for.",
        ),
        ("SIGINT", "Cancel all migrations, wait for them, and end. A second one does not wait."),
        ("SIGHUP", "Read the configuration again. One with an error changes nothing."),
    ):
        yield f".TP\n.B {name}\n{quote(meaning)}"
    yield ".SH CAPABILITIES"
    for name, meaning in (
        (
            "CAP_SYS_PTRACE",
            "Taking the write tracker over from QEMU, and reading what /proc tells of it.",
        ),
        (
            "CAP_DAC_OVERRIDE",
            "QMP sockets and RAM files of QEMUs that run as another user.",
        ),
    ):
        yield f".TP\n.B {quote(name)}\n{quote(meaning)}"
    yield from _paragraphs(
        "No other is needed by a daemon with root's user ID, to whom cgroups belong. With the"
        " kernel patches, CAP_SYS_ADMIN shows the swap slots by which cold pages are then ordered."
    )
    yield ".SH SYSTEMD"
    yield from _paragraphs(
        "pageferryd.service is hardened; pageferryd.socket, not enabled by default, keeps the"
        " control socket open over restarts. A unit of your own needs Type=notify,"
        " FileDescriptorStoreMax= above the number of migrations, and KillMode=process, so that a"
        " restart leaves running migrations alone. The watchdog is fed when WatchdogSec= is set."
        " Sockets may be passed with FileDescriptorName=control and"
        " FileDescriptorName=agent. Log lines have the journal fields PAGEFERRY_MIGRATION_ID,"
        " PAGEFERRY_GUEST and PAGEFERRY_ROLE."
    )
    yield f".SH FILES\n.TP\n.I {quote(str(DEFAULT_PATH))}\nThe configuration."
    yield from (".SH SEE ALSO", ".BR pageferry (1),", ".BR pageferryd.toml (5)")


def _configuration() -> Iterator[str]:
    yield from _head("pageferryd.toml", 5, "configuration of pageferryd")
    yield ".SH DESCRIPTION"
    yield from _paragraphs(
        f"{DEFAULT_PATH} is a TOML file, read strictly: an unknown key is an error that names its"
        " line. pageferryd --check checks it. At SIGHUP it is read again; keys that need a restart"
        " say so."
    )
    for table, meaning in TABLES.items():
        yield f".SH [{quote(table)}]"
        yield quote(meaning)
        if table == "defaults":
            yield from _parameters()
            continue
        for key in KEYS:
            if key.table == table:
                yield f".TP\n\\fB{quote(key.key)}\\fR = \\fI{quote(key.kind)}\\fR"
                default = f" Default: {key.default}." if key.default else ""
                restart = " Needs a restart." if key.needs_restart else ""
                yield quote(f"{key.meaning[0].upper()}{key.meaning[1:]}.{default}{restart}")
    yield from (".SH SEE ALSO", ".BR pageferryd (8),", ".BR pageferry (1)")


def _parameters() -> Iterator[str]:
    defaults = MigrationParameters().to_dict()
    for member in PARAMETERS:
        kind = member.type
        words = kind.value if isinstance(kind, Builtin) else ""
        if isinstance(kind, Enum):
            words = "|".join(kind.values)
        yield f".TP\n\\fB{quote(member.name)}\\fR = \\fI{quote(words)}\\fR"
        default = toml(defaults.get(member.name))
        text = f"{member.doc[0].upper()}{member.doc[1:]}."
        text += f" Default: {default}." if default else ""
        text += " Can be changed while a migration runs." if member.name in CHANGEABLE else ""
        yield quote(text)
