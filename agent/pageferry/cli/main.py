"""pageferry: the verbs and what they have in common."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

import trio

from pageferry import __version__
from pageferry.cli.exit_codes import EPILOG, ExitCode, of_report
from pageferry.cli.output import print_error, print_json, report_of
from pageferry.cli.values import FILE_COMPLETION
from pageferry.control.client import DEFAULT_SOCKET
from pageferry.control.errors import CommandError
from pageferry.model.errors import PageferryError

VERBS: Final = (
    "migrate",
    "watch",
    "cancel",
    "set",
    "status",
    "history",
    "guests",
    "residency",
    "estimate",
    "doctor",
    "recover",
    "certs",
    "demo",
    "completion",
)

SOCKET_VARIABLE: Final = "PAGEFERRY_SOCKET"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Returns the exit status."""
    arguments = _parsed(argv)
    try:
        return int(trio.run(module_of(arguments.verb).run, arguments))
    except (CommandError, PageferryError) as error:
        return int(_failed(arguments, error))
    except KeyboardInterrupt:
        return int(ExitCode.FAILED)
    except BrokenPipeError:
        # Whoever read our lines has gone; Python would complain once more when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.FAILED)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes no words of a list of any length after an option that stands in between, as in
    `set web1 --json downtime-limit=100`."""
    words = sys.argv[1:] if argv is None else argv
    # The others' modules take a tenth of a second, a third of what a verb takes to begin.
    parser = make_parser(words[:1] if words and words[0] in VERBS else VERBS)
    arguments, rest = parser.parse_known_args(argv)
    if rest and (arguments.verb != "set" or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.assignments = [*arguments.assignments, *rest]
    return arguments


def _failed(arguments: argparse.Namespace, error: CommandError | PageferryError) -> ExitCode:
    report = report_of(error)
    code = of_report(report)
    wants_json = getattr(arguments, "json", None) is True  # the demo's is a file
    told = {"exit-status": code.value, "error": report}
    if arguments.verb in ("migrate", "watch"):
        if wants_json or not sys.stdout.isatty():
            print_json({"event": "finished", "status": "failed", "info": None, **told})
    elif wants_json:
        print_json(told)
    print_error(report)
    return code


def module_of(verb: str) -> ModuleType:
    """The module of one of `VERBS`."""
    return import_module(f"pageferry.cli.{verb}_cmd")


def make_parser(names: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """The command line, from which help, manual and completion are made, with these verbs."""
    parser = argparse.ArgumentParser(
        prog="pageferry",
        description="Carries running QEMU guests to other hosts; swapped pages stay swapped.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pageferry {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in names:
        module = module_of(name)
        verb = verbs.add_parser(
            name,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(verb)
        control = verb.add_argument(
            "--socket",
            type=Path,
            metavar="PATH",
            default=Path(os.environ.get(SOCKET_VARIABLE, DEFAULT_SOCKET)),
            help=f"the daemon's control socket (default: ${SOCKET_VARIABLE} or {DEFAULT_SOCKET})",
        )
        control.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    return parser


if __name__ == "__main__":
    sys.exit(main())
