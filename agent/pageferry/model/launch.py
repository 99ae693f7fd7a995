"""How the destination's agent starts the QEMU that a guest comes into. Pure data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Launch:
    """A command, and as whom and where it runs.

    ``uid`` None: as the agent itself. ``cgroup``: its memory cgroup's name under the hierarchy's
    mount point; empty: the agent's own.

    ``follows_source``: the command is but the program, to be completed by the source's command
    line; ``paths`` and ``interfaces`` say what that may name (`policy.followed_command`).

    ``in_service``: systemd starts it, in a service of its own (`policy.guest_service`).
    """

    command: tuple[str, ...]
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    cgroup: str = ""
    follows_source: bool = False
    paths: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    in_service: bool = False

    def completed(self, command: Sequence[str]) -> Launch:
        """The same with a whole command."""
        return replace(self, command=tuple(command), follows_source=False)

    def to_packet(self) -> dict[str, Any]:
        """For a worker's job."""
        return {
            "command": list(self.command),
            "uid": self.uid,
            "gid": self.gid,
            "groups": list(self.groups),
            "cgroup": self.cgroup,
            "follows-source": self.follows_source,
            "paths": list(self.paths),
            "interfaces": list(self.interfaces),
            "in-service": self.in_service,
        }

    @classmethod
    def from_packet(cls, packet: Mapping[str, Any]) -> Launch:
        """As `to_packet` has it. Raises KeyError."""
        return cls(
            command=tuple(packet["command"]),
            uid=packet["uid"],
            gid=packet["gid"],
            groups=tuple(packet["groups"]),
            cgroup=packet["cgroup"],
            follows_source=packet["follows-source"],
            paths=tuple(packet["paths"]),
            interfaces=tuple(packet["interfaces"]),
            in_service=packet["in-service"],
        )
