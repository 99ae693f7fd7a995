"""An operator's word that a migration's destination is gone for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DestinationGone:
    """Its host is switched off or fenced, and no QEMU there will go on with the guest.

    ``uid`` and ``pid``: who said so, by SO_PEERCRED. ``resume``: whether the guest is to run on
    the source at once, if it ran.
    """

    uid: int
    pid: int
    resume: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For the journal."""
        return {"uid": self.uid, "pid": self.pid, "resume": self.resume}
