"""`pageferry completion`: a completion script for a shell."""

from __future__ import annotations

import argparse
from typing import Final

import shtab

from pageferry.cli.exit_codes import ExitCode
from pageferry.control.types import PARAMETERS

SUMMARY = "print a completion script for a shell"

DESCRIPTION = """\
Prints a script that completes pageferry's verbs and options, and the names of guests and
migrations that the daemon knows. For bash:

    pageferry completion bash > /etc/bash_completion.d/pageferry"""

SHELLS: Final = ("bash", "zsh")

# The daemon is asked while the operator waits at a prompt: quietly, and not for long.
_PARAMETERS: Final = " ".join(f"{member.name}=" for member in PARAMETERS)

_PREAMBLE: Final = {
    "bash": f"""
_pageferry_parameters() {{
    compgen -W "{_PARAMETERS}" -- "$1"
}}
"""
    """
_pageferry_guests() {
    compgen -W "$(timeout 1 pageferry guests --names 2>/dev/null)" -- "$1"
}
_pageferry_migrations() {
    compgen -W "$(timeout 1 pageferry status --names 2>/dev/null)" -- "$1"
}
""",
    "zsh": f"""
_pageferry_parameters() {{
    compadd -S "" -- {_PARAMETERS}
}}
"""
    """
_pageferry_guests() {
    compadd -- ${(f)"$(timeout 1 pageferry guests --names 2>/dev/null)"}
}
_pageferry_migrations() {
    compadd -- ${(f)"$(timeout 1 pageferry status --names 2>/dev/null)"}
}
""",
}


_BASH_END: Final = "complete -o bashdefault -F _shtab_pageferry pageferry\n"

# A value follows KEY= at once; shtab's own functions run where compopt has no effect.
_BASH_END_WITH_VALUES: Final = """\
_pageferry() {
    _shtab_pageferry "$@"
    [[ ${COMPREPLY[0]-} != *= ]] || compopt -o nospace 2>/dev/null
}
complete -o bashdefault -F _pageferry pageferry
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    parser.add_argument("shell", choices=SHELLS, help="which shell")


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it."""
    from pageferry.cli.main import make_parser  # main imports the verbs

    print(script(make_parser(), arguments.shell), end="")
    return ExitCode.COMPLETED


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for one of SHELLS."""
    text = shtab.complete(parser, shell=shell, preamble=_PREAMBLE[shell]).rstrip() + "\n"
    return text.replace(_BASH_END, _BASH_END_WITH_VALUES)
