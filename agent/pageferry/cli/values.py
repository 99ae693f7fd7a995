"""Values as operators write them on a command line."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from typing import Any, Final

from pageferry.cli.output import UsageError
from pageferry.control.schema import Builtin, Enum, Member
from pageferry.control.types import PARAMETERS

_SIZE: Final = re.compile(r"(\d+)\s*([kKmMgGtT]?)(?:i?[bB])?")
_FACTORS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_TRUTH: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

GUEST_NAME_COMPLETION: Final = {"bash": "_pageferry_guests", "zsh": "_pageferry_guests"}
"""For shtab: a function of the completion script that lists guests."""

FILE_COMPLETION: Final = {"bash": "_shtab_compgen_files", "zsh": "_files"}
"""What shtab.FILE has for these shells; a verb need not import shtab for it."""

MIGRATION_COMPLETION: Final = {"bash": "_pageferry_migrations", "zsh": "_pageferry_migrations"}

PARAMETER_COMPLETION: Final = {"bash": "_pageferry_parameters", "zsh": "_pageferry_parameters"}


def size_of(text: str) -> int:
    """Bytes, from a number with perhaps a binary K, M, G or T. Raises ArgumentTypeError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write as in 65536, 512K or 4M")
    return int(match[1]) * _FACTORS[match[2].lower()]


def number_of(text: str) -> float:
    """A number; "nan" and "inf" are none, as in JSON. Raises ArgumentTypeError."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return number


def parameters_from(assignments: Sequence[str]) -> dict[str, Any]:
    """Migration parameters from KEY=VALUE. Raises UsageError, saying what would be right.

    The daemon checks ranges; here it is only told apart what is a number and what is a word.
    """
    known = {member.name: member for member in PARAMETERS}
    values = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if key not in known:
            raise _wrong(f"there is no parameter {key!r}; known are {', '.join(known)}")
        if not equals:
            raise _wrong(f"give {key} a value: {key}=VALUE")
        values[key] = _value(known[key], text)
    return values


def _value(member: Member, text: str) -> Any:
    kind = member.type
    wanted = "a word"
    try:
        if kind is Builtin.INT:
            wanted = "a whole number"
            return int(text)
        if kind is Builtin.SIZE:
            wanted = "a size, as in 65536, 512K or 4M"
            return size_of(text)
        if kind is Builtin.NUMBER:
            wanted = "a number"
            return number_of(text)
        if kind is Builtin.BOOL:
            wanted = "on or off"
            return _TRUTH[text.lower()]
        if isinstance(kind, Enum):
            wanted = f"one of {', '.join(kind.values)}"
            return kind.values[kind.values.index(text)]
    except (ValueError, KeyError, argparse.ArgumentTypeError):
        raise _wrong(f"{member.name} is {text!r}; give it {wanted}") from None
    return text


def _wrong(message: str) -> UsageError:
    return UsageError(message, advice="see pageferry set --help")


def add_set_option(parser: argparse.ArgumentParser) -> None:
    """--set, for the parameters that have no option of their own."""
    option = parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any parameter, as in pageferry set: --set swap-pacing=off; may be given again",
    )
    option.complete = PARAMETER_COMPLETION  # type: ignore[attr-defined]
