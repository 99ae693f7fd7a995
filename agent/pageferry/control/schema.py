"""Types of commands and events, in QAPI's terms: one declaration for three uses.

Arguments are checked against it before a command has any effect, query-qmp-schema describes it in
the form of QAPI's introspection (QEMU, qapi/introspect.json), and the reference is written from it.

Type names in the answer to query-qmp-schema are ours to change; commands, events and the names of
members and values are not.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pageferry.control.errors import CommandError

Entry = dict[str, Any]
"""One SchemaInfo."""

_INT64: Final = 1 << 63


class Builtin(enum.Enum):
    """QAPI's builtin types, as far as they are used. The value is the name."""

    STR = "str"
    INT = "int"
    SIZE = "size"
    """A whole number of bytes, not negative; "int" on the wire and in introspection."""
    NUMBER = "number"
    BOOL = "bool"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Enum:
    """One of some words."""

    name: str
    values: tuple[str, ...]
    doc: str = ""


@dataclass(frozen=True, slots=True)
class Array:
    """Any number of elements of one type."""

    element: Type


@dataclass(frozen=True, slots=True)
class Struct:
    """An object with named members. What is answered may have more members in a newer daemon."""

    name: str
    members: tuple[Member, ...] = ()
    doc: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an object, or an argument of a command."""

    name: str
    type: Type
    doc: str = ""
    optional: bool = False


Type = Builtin | Enum | Array | Struct

STR: Final = Builtin.STR
INT: Final = Builtin.INT
SIZE: Final = Builtin.SIZE
NUMBER: Final = Builtin.NUMBER
BOOL: Final = Builtin.BOOL
ANY: Final = Builtin.ANY

EMPTY: Final = Struct("q_empty")
"""The answer of a command that has none, and the arguments of one that takes none."""


@dataclass(frozen=True, slots=True)
class EventType:
    """An event and what it carries."""

    name: str
    members: tuple[Member, ...]
    doc: str = ""


_EXPECTED: Final = {
    Builtin.STR: ("string", (str,)),
    Builtin.INT: ("integer", (int,)),
    Builtin.SIZE: ("integer of bytes, not negative", (int,)),
    Builtin.NUMBER: ("number", (int, float)),
    Builtin.BOOL: ("boolean", (bool,)),
}


def check(kind: Type, value: object, where: str) -> None:
    """Raise CommandError, in QEMU's words, unless *value* is of type *kind*.

    *where* names it, as in ``parameters.channels``; empty for the arguments themselves.
    """
    if kind is Builtin.ANY:
        return
    if isinstance(kind, Builtin):
        _check_builtin(kind, value, where)
    elif isinstance(kind, Enum):
        if not isinstance(value, str):
            raise _wrong(where, "string")
        if value not in kind.values:
            raise CommandError(
                f"Parameter '{where}' does not accept value '{value:.80}', only"
                f" {', '.join(kind.values)}"
            )
    elif isinstance(kind, Array):
        if not isinstance(value, list):
            raise _wrong(where, "array")
        for number, element in enumerate(value):
            check(kind.element, element, f"{where}[{number}]")
    else:
        _check_struct(kind, value, where)


def _check_builtin(kind: Builtin, value: object, where: str) -> None:
    expected, types = _EXPECTED[kind]
    fits = isinstance(value, types)
    if isinstance(value, bool):
        fits = kind is Builtin.BOOL
    elif isinstance(value, int):
        least = 0 if kind is Builtin.SIZE else -_INT64
        fits = fits and least <= value < _INT64
    if not fits:
        raise _wrong(where, expected)


def _check_struct(kind: Struct, value: object, where: str) -> None:
    if not isinstance(value, Mapping):
        raise _wrong(where, "object")
    prefix = f"{where}." if where else ""
    known = {member.name: member for member in kind.members}
    for name, inner in value.items():
        if name not in known:
            raise CommandError(f"Parameter '{prefix}{name:.80}' is unexpected")
        check(known[name].type, inner, prefix + name)
    for member in kind.members:
        if not member.optional and member.name not in value:
            raise CommandError(f"Parameter '{prefix}{member.name}' is missing")


def _wrong(where: str, expected: str) -> CommandError:
    return CommandError(f"Invalid parameter type for '{where}', expected: {expected}")


class Introspection:
    """Collects the entries of query-qmp-schema: what is added, and all types that it names."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}

    def command(
        self, name: str, arguments: Struct, returns: Type, features: Iterable[str] = ()
    ) -> None:
        """Add a command."""
        entry: Entry = {
            "name": name,
            "meta-type": "command",
            "arg-type": self._name(arguments),
            "ret-type": self._name(returns),
        }
        if features:
            entry["features"] = list(features)
        self._entries["command", name] = entry

    def event(self, event: EventType) -> None:
        """Add an event."""
        carried = Struct(f"q_obj_{event.name}-arg", event.members)
        self._entries["event", event.name] = {
            "name": event.name,
            "meta-type": "event",
            "arg-type": self._name(carried if event.members else EMPTY),
        }

    def entries(self) -> list[Entry]:
        """All of it: commands and events first, as QEMU has it."""
        order = ("command", "event")
        return sorted(
            self._entries.values(),
            key=lambda entry: (entry["meta-type"] not in order, entry["meta-type"], entry["name"]),
        )

    def _name(self, kind: Type) -> str:
        """The name of *kind*, whose entry is made if it is new."""
        if isinstance(kind, Builtin):
            return self._builtin("int" if kind is Builtin.SIZE else kind.value)
        if isinstance(kind, Array):
            element = self._name(kind.element)
            return self._add(f"[{element}]", "array", {"element-type": element})
        if isinstance(kind, Enum):
            members = [{"name": value} for value in kind.values]
            return self._add(kind.name, "enum", {"members": members, "values": list(kind.values)})
        if ("type", kind.name) not in self._entries:
            self._entries["type", kind.name] = {}  # a type may hold itself
            members = [self._member(member) for member in kind.members]
            self._entries["type", kind.name] = {
                "name": kind.name,
                "meta-type": "object",
                "members": members,
            }
        return kind.name

    def _member(self, member: Member) -> Entry:
        entry: Entry = {"name": member.name, "type": self._name(member.type)}
        if member.optional:
            entry["default"] = None  # QAPI's sign for an optional member
        return entry

    def _builtin(self, name: str) -> str:
        json_types = {"str": "string", "bool": "boolean", "any": "value"}
        return self._add(name, "builtin", {"json-type": json_types.get(name, name)})

    def _add(self, name: str, meta_type: str, rest: Entry) -> str:
        self._entries.setdefault(("type", name), {"name": name, "meta-type": meta_type, **rest})
        return name
