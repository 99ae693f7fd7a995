"""How one connection gets from the daemon, which lets it in, to the worker, which serves it.

A TLS session cannot be moved to another process. So an encrypted connection that is to be served by
a worker sees two sessions, one after the other:

1. The connecting side and the daemon get to know each other, and the connecting side says its first
   message (Hello or Attach) and that it says nothing more (close_notify). The daemon either answers
   and ends the connection, or ends the session without an answer: that means *go on*.
2. The connecting side begins a new session on the same TCP connection, now with the worker, who
   was given the descriptor, and both check certificates once more.

So strangers never reach a worker, no session key ever crosses a process boundary, the worker's
connections outlive the daemon, and nothing has to be routed by what an unauthenticated peer wrote.
The second session is bound to the first: both sides must name its exported secret (RFC 8446, 7.5)
as their application protocol, so that nobody in between can join halves of different connections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pageferry.certificates.description import CertificateInfo
from pageferry.certificates.files import Side, load_material
from pageferry.model.errors import RemoteProtocolError
from pageferry.net.tls import Session, TlsContext
from pageferry.wire.messages import Attach, Hello, Message

FIRST_PROTOCOL: Final = "pageferry"
"""What both sides name in the first session, so that certificates shared with other programs do not
make those take us for one of theirs."""

HANDED_OVER: Final[tuple[type[Message], ...]] = (Hello, Attach)
"""First messages of connections that go on to a worker; Query is answered by the daemon."""

CertificateCheck = Callable[[CertificateInfo], None]
"""Raises a PageferryError when whoever has this certificate may not go on."""


def second_protocol(first: Session) -> str:
    """What both sides name in the session that follows *first*; after its handshake."""
    return f"{FIRST_PROTOCOL}/{first.export().hex()}"


@dataclass(frozen=True, slots=True)
class SecondSession:
    """What the worker has to know about the session that it is to begin, as a server."""

    directory: Path
    protocol: str
    fingerprint: str

    @classmethod
    def from_packet(cls, packet: Mapping[str, Any] | None) -> SecondSession | None:
        """What `to_packet` made; None for a connection without TLS."""
        if packet is None:
            return None
        return cls(Path(packet["directory"]), packet["protocol"], packet["fingerprint"])

    def to_packet(self) -> dict[str, Any]:
        """For the link to the worker."""
        return {
            "directory": str(self.directory),
            "protocol": self.protocol,
            "fingerprint": self.fingerprint,
        }

    def context(self) -> TlsContext:
        """This host's side of it. Raises CertificateFileError."""
        return TlsContext(load_material(self.directory, Side.SERVER))

    def check(self, peer: CertificateInfo) -> None:
        """Raise RemoteProtocolError when *peer* is not who the first session was with."""
        if peer.fingerprint != self.fingerprint:
            raise RemoteProtocolError(
                f"the connection was begun with another certificate than that of {peer}",
                advice="when certificates have just been replaced on the other host, try again",
            )
