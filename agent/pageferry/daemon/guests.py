"""Guests by name or by the path of their QMP socket."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pageferry.daemon.config import GUEST_NAME, Config
from pageferry.model.errors import UnknownGuestError


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest of this host. ``name`` is empty where only the socket is known."""

    name: str
    qmp: Path
    configured: bool = True

    @property
    def label(self) -> str:
        """What to call it."""
        return self.name or os.fspath(self.qmp)

    @property
    def key(self) -> str:
        """The same for the same guest, however it was named: the real path of its QMP socket."""
        return os.path.realpath(self.qmp)


class GuestDirectory:
    """Finds guests as the configuration says."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def by_name(self, name: str) -> Guest:
        """The guest called *name*; the only way for a peer. Raises UnknownGuestError."""
        path = self._config.guests.get(name)
        if path is not None:
            return Guest(name, path)
        if self._config.guest_sockets is not None and GUEST_NAME.fullmatch(name):
            path = Path(self._config.guest_sockets.replace("{name}", name))
            if path.is_socket():
                return Guest(name, path, configured=False)
        raise UnknownGuestError(
            f"there is no guest {name[:128]!r} on this host",
            advice="see `pageferry guests` here, and add it to [guests] in the configuration",
        )

    def by_reference(self, reference: str) -> Guest:
        """A guest by its name, or by the absolute path of its QMP socket. Raises UnknownGuestError.

        For local clients only: a path makes the daemon connect to whatever socket is named.
        """
        if not reference.startswith("/"):
            return self.by_name(reference)
        path = Path(reference)
        if not path.is_socket():
            raise UnknownGuestError(
                f"{reference[:255]} is no socket",
                advice="give the guest's name, or the path of its QMP socket",
            )
        wanted = Guest("", path, configured=False)
        return next((guest for guest in self.all() if guest.key == wanted.key), wanted)

    def all(self) -> list[Guest]:
        """The configured guests, and those whose sockets fit the template, by name."""
        guests = {name: Guest(name, path) for name, path in self._config.guests.items()}
        for guest in self._found():
            guests.setdefault(guest.name, guest)
        return [guests[name] for name in sorted(guests)]

    def _found(self) -> list[Guest]:
        template = self._config.guest_sockets
        if template is None:
            return []
        # The name may stand within a directory's name: match the part of the path that holds it.
        before, after = template.split("{name}")
        directory, prefix = os.path.split(before)
        suffix, _, rest = after.partition("/")
        found = []
        for entry in sorted(Path(directory).glob("*")):
            name = entry.name.removeprefix(prefix).removesuffix(suffix)
            path = entry / rest if rest else entry
            fits = entry.name == f"{prefix}{name}{suffix}" and GUEST_NAME.fullmatch(name)
            if fits and path.is_socket():
                found.append(Guest(name, path, configured=False))
        return found
