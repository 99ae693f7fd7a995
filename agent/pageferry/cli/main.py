"""pageferry: the verbs and what they have in common."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

import shtab
import trio

from pageferry import __version__
from pageferry.cli import (
    cancel_cmd,
    certs_cmd,
    completion_cmd,
    demo_cmd,
    doctor_cmd,
    estimate_cmd,
    guests_cmd,
    history_cmd,
    migrate_cmd,
    recover_cmd,
    residency_cmd,
    set_cmd,
    status_cmd,
    watch_cmd,
)
from pageferry.cli.exit_codes import EPILOG, ExitCode, of_report
from pageferry.cli.output import print_error, print_json, report_of
from pageferry.control.client import DEFAULT_SOCKET
from pageferry.control.errors import CommandError
from pageferry.model.errors import PageferryError

VERBS: Final[dict[str, ModuleType]] = {
    "migrate": migrate_cmd,
    "watch": watch_cmd,
    "cancel": cancel_cmd,
    "set": set_cmd,
    "status": status_cmd,
    "history": history_cmd,
    "guests": guests_cmd,
    "residency": residency_cmd,
    "estimate": estimate_cmd,
    "doctor": doctor_cmd,
    "recover": recover_cmd,
    "certs": certs_cmd,
    "demo": demo_cmd,
    "completion": completion_cmd,
}

SOCKET_VARIABLE: Final = "PAGEFERRY_SOCKET"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Returns the exit status."""
    arguments = _parsed(argv)
    try:
        return int(trio.run(VERBS[arguments.verb].run, arguments))
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
    parser = make_parser()
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


def make_parser() -> argparse.ArgumentParser:
    """The command line, from which help, manual and completion are made."""
    parser = argparse.ArgumentParser(
        prog="pageferry",
        description="Carries running QEMU guests to other hosts; swapped pages stay swapped.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pageferry {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, module in VERBS.items():
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
        control.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


if __name__ == "__main__":
    sys.exit(main())
