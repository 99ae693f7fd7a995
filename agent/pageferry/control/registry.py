"""Commands with typed arguments, checked before a command has any effect.

The specifications are data, so that the same table that checks a call can describe itself.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pageferry.control.errors import COMMAND_NOT_FOUND, CommandError


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection (SO_PEERCRED), as it was when it connected."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"pid {self.pid}, uid {self.uid}"


class ArgumentType(enum.Enum):
    """Types of arguments, by QAPI's names."""

    STR = "str"
    INT = "int"
    SIZE = "size"
    NUMBER = "number"
    BOOL = "bool"
    STR_LIST = "strList"
    OBJECT = "object"


_PYTHON_TYPES: Final[dict[ArgumentType, tuple[type, ...]]] = {
    ArgumentType.STR: (str,),
    ArgumentType.INT: (int,),
    ArgumentType.SIZE: (int,),
    ArgumentType.NUMBER: (int, float),
    ArgumentType.BOOL: (bool,),
    ArgumentType.STR_LIST: (list,),
    ArgumentType.OBJECT: (dict,),
}

_LONGEST_INT: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a command."""

    name: str
    type: ArgumentType
    optional: bool = False

    def check(self, value: object) -> None:
        """Raise CommandError unless *value* is of the type."""
        fits = isinstance(value, _PYTHON_TYPES[self.type])
        if isinstance(value, bool):
            fits = self.type is ArgumentType.BOOL
        elif isinstance(value, int):
            low = 0 if self.type is ArgumentType.SIZE else -_LONGEST_INT
            fits = fits and low <= value < _LONGEST_INT
        elif isinstance(value, list):
            fits = fits and all(isinstance(item, str) for item in value)
        if not fits:
            raise CommandError(
                f"Invalid parameter type for '{self.name}', expected: {self.type.value}"
            )


Handler = Callable[[dict[str, Any], Peer], Awaitable[Any]]
"""Called with checked arguments, by their names on the wire. What it returns is the answer."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its name, arguments and what it does."""

    name: str
    handler: Handler
    arguments: tuple[Argument, ...] = ()
    summary: str = ""

    def check(self, arguments: Mapping[str, object]) -> None:
        """Raise CommandError unless *arguments* are those of the command."""
        known = {argument.name: argument for argument in self.arguments}
        for name, value in arguments.items():
            if name not in known:
                raise CommandError(f"Parameter '{name}' is unexpected")
            known[name].check(value)
        for argument in self.arguments:
            if not argument.optional and argument.name not in arguments:
                raise CommandError(f"Parameter '{argument.name}' is missing")


@dataclass(slots=True)
class Registry:
    """The commands of one server."""

    commands: dict[str, Command] = field(default_factory=dict)

    def add(self, *commands: Command) -> None:
        """Add *commands*. Two of one name are a bug."""
        for command in commands:
            if command.name in self.commands:
                raise ValueError(f"command {command.name} is there already")
            self.commands[command.name] = command

    def names(self) -> Iterable[str]:
        """All names, sorted."""
        return sorted(self.commands)

    async def call(self, name: str, arguments: dict[str, Any], peer: Peer) -> Any:
        """Check and run a command. Raises CommandError, before any effect if the call is wrong."""
        command = self.commands.get(name)
        if command is None:
            raise CommandError(f"The command {name:.80} has not been found", COMMAND_NOT_FOUND)
        command.check(arguments)
        return await command.handler(arguments, peer)
