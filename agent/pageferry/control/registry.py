"""Commands with declared types, checked before a command has any effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pageferry.control import schema
from pageferry.control.errors import COMMAND_NOT_FOUND, CommandError
from pageferry.control.schema import EventType, Member, Struct


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection (SO_PEERCRED), as it was when it connected.

    ``groups``: its supplementary groups (SO_PEERGROUPS), without ``gid``; None: too many to tell.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] | None = frozenset()

    def is_in_group(self, gid: int) -> bool:
        """Whether it is a member, or may be one."""
        return self.groups is None or gid == self.gid or gid in self.groups

    def __str__(self) -> str:
        return f"pid {self.pid}, uid {self.uid}"


Handler = Callable[[dict[str, Any], Peer], Awaitable[Any]]
"""Called with checked arguments, by their names on the wire. What it returns is the answer."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a command is: its name, arguments, answer, and what it is for."""

    name: str
    doc: str
    arguments: tuple[Member, ...] = ()
    returns: schema.Type = schema.EMPTY
    features: tuple[str, ...] = ()

    @property
    def argument_type(self) -> Struct:
        """The arguments as one object."""
        if not self.arguments:
            return schema.EMPTY
        return Struct(f"q_obj_{self.name}-arg", self.arguments)

    @property
    def only_reads(self) -> bool:
        """Whether a client that may only read may run it."""
        return self.name.startswith("query-") or self.name == "qmp_capabilities"

    def check(self, arguments: Mapping[str, object]) -> None:
        """Raise CommandError unless *arguments* are those of the command."""
        schema.check(self.argument_type, arguments, "")


@dataclass(slots=True)
class Registry:
    """The commands of one server, and the events that it sends."""

    declarations: dict[str, Declaration] = field(default_factory=dict)
    events: tuple[EventType, ...] = ()
    _handlers: dict[str, Handler] = field(default_factory=dict)

    def add(self, declaration: Declaration, handler: Handler) -> None:
        """Add a command. Two of one name are a bug."""
        if declaration.name in self.declarations:
            raise ValueError(f"command {declaration.name} is there already")
        self.declarations[declaration.name] = declaration
        self._handlers[declaration.name] = handler

    def names(self) -> Iterable[str]:
        """All names, sorted."""
        return sorted(self.declarations)

    def introspection(self) -> list[schema.Entry]:
        """The answer to query-qmp-schema."""
        found = schema.Introspection()
        for command in self.declarations.values():
            found.command(command.name, command.argument_type, command.returns, command.features)
        for event in self.events:
            found.event(event)
        return found.entries()

    def declaration(self, name: str) -> Declaration:
        """The command of that name. Raises CommandError."""
        declaration = self.declarations.get(name)
        if declaration is None:
            raise CommandError(f"The command {name:.80} has not been found", COMMAND_NOT_FOUND)
        return declaration

    async def call(self, name: str, arguments: dict[str, Any], peer: Peer) -> Any:
        """Check and run a command. Raises CommandError, before any effect if the call is wrong."""
        self.declaration(name).check(arguments)
        return await self._handlers[name](arguments, peer)
