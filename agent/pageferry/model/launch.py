"""How the destination's agent starts the QEMU that a guest comes into. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Launch:
    """A command, and as whom and where it runs.

    ``uid`` None: as the agent itself. ``cgroup``: its memory cgroup's name under the hierarchy's
    mount point; empty: the agent's own.
    """

    command: tuple[str, ...]
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    cgroup: str = ""

    def to_packet(self) -> dict[str, Any]:
        """For a worker's job."""
        return {
            "command": list(self.command),
            "uid": self.uid,
            "gid": self.gid,
            "groups": list(self.groups),
            "cgroup": self.cgroup,
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
        )
