"""QEMU's command line, as far as the agent reads one: options, their values, what they name. Pure.

QEMU takes options with one dash or two, and most of their values as ``key=value,…`` with a comma in
a value doubled (qemu-options.hx, util/keyval.c), or as a JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

FLAGS: Final = frozenset(
    {"-S", "-nodefaults", "-no-user-config", "-no-hpet", "-no-shutdown", "-no-reboot", "-nographic"}
    | {"-enable-kvm", "-usb", "-snapshot", "-daemonize", "-s", "-h", "-no-acpi", "-full-screen"}
    | {"-no-fd-bootchk", "-version", "-preconfig", "-only-migratable", "-mem-prealloc"}
)
"""Options without a value, as far as they matter here."""

ValueMap = Mapping[str, str]


class CommandLineError(ValueError):
    """The command line cannot be read; the message says where."""


def options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option with one dash, value) of each; a flag's value is empty. Raises CommandLineError."""
    waiting = iter(arguments)
    for argument in waiting:
        name = argument[1:] if argument.startswith("--") else argument
        if not name.startswith("-") or name == "-":
            raise CommandLineError(f"{argument[:80]!r} is no option")
        if name in FLAGS:
            yield name, ""
            continue
        value = next(waiting, None)
        if value is None:
            raise CommandLineError(f"{argument} lacks its value")
        yield name, value


def values_of(text: str, first: str = "") -> ValueMap:
    """The keys and values of an option's value; *first* is the key of a first part without one.

    A part without ``=`` is the key itself with ``on``, as QEMU reads it. Raises CommandLineError.
    """
    if text.startswith("{"):
        return _from_json(text)
    found: dict[str, str] = {}
    for number, part in enumerate(_parts(text)):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = (first, part) if number == 0 and first else (part, "on")
        if not key or key in found:
            raise CommandLineError(f"{text[:80]!r} names {key[:40]!r} twice, or no key")
        found[key] = value
    return found


def _parts(text: str) -> list[str]:
    """Split at single commas; a doubled one stands for itself."""
    parts = [""]
    position = 0
    while position < len(text):
        if text[position] != ",":
            parts[-1] += text[position]
        elif text[position : position + 2] == ",,":
            parts[-1] += ","
            position += 1
        else:
            parts.append("")
        position += 1
    return parts


def _from_json(text: str) -> ValueMap:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandLineError(f"{text[:80]!r} is no JSON: {error}") from None
    if not isinstance(told, dict):
        raise CommandLineError(f"{text[:80]!r} is no JSON object")
    found: dict[str, str] = {}
    _flatten(told, "", found)
    return found


def _flatten(told: Mapping[str, object], prefix: str, found: dict[str, str]) -> None:
    for key, value in told.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            _flatten(value, f"{name}.", found)
        elif isinstance(value, bool):
            found[name] = "on" if value else "off"
        elif isinstance(value, str | int):
            found[name] = str(value)
        elif isinstance(value, list) and all(type(each) is int for each in value):
            found[name] = ":".join(map(str, value))
        else:
            raise CommandLineError(f"{name[:40]} has a value that is not understood")


def complaint_about_launch(command: Sequence[str], qmp: str) -> str:
    """What a launch command lacks or must not have; empty when it will do. *command* is the program
    and its arguments, *qmp* the path at which its monitor must listen.

    The program need not be QEMU itself, so only what must be there is looked for.
    """
    arguments = [each[1:] if each.startswith("--") else each for each in command]
    if "-daemonize" in arguments:
        return "-daemonize: the agent starts it in the background by itself"
    if "-S" not in arguments:
        return "-S is missing: without it QEMU lets the guest run before it has been handed over"
    following = dict(zip(arguments, command[1:], strict=False))
    if following.get("-incoming") != "defer":
        return "-incoming defer is missing: with it QEMU waits until the agent has the guest's RAM"
    monitors = zip(arguments, command[1:], strict=False)
    if not any(name in ("-qmp", "-chardev", "-mon") and qmp in value for name, value in monitors):
        return f"no monitor listens at {qmp}: add -qmp unix:{qmp},server=on,wait=off"
    return ""


def ram_paths(arguments: Sequence[str]) -> list[str]:
    """Files that memory backends of this command line name. What cannot be read names none."""
    found = []
    for name, value in pairwise(arguments):
        if name.lstrip("-") != "object" or not name.startswith("-"):
            continue
        try:
            values = values_of(value, "qom-type")
        except CommandLineError:
            continue
        path = values.get("mem-path", "")
        if values.get("qom-type") == "memory-backend-file" and path.startswith("/"):
            found.append(path)
    return found
