"""What a worker process is told to do, as it comes over the link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pageferry.certificates.description import CertificateInfo
from pageferry.model.errors import RefusedError
from pageferry.model.launch import Launch
from pageferry.model.parameters import MigrationParameters
from pageferry.net.address import Address
from pageferry.net.connecting import Route, find_route
from pageferry.net.encryption import Encryption
from pageferry.net.handing_over import SecondSession
from pageferry.policy.peers import any_matches
from pageferry.wire.limits import OLDEST_VERSION, VERSION
from pageferry.wire.messages import Hello

MIN_VERSION = OLDEST_VERSION
MAX_VERSION = VERSION
"""Versions of the wire protocol that this agent speaks."""


@dataclass(frozen=True, slots=True)
class SourceJob:
    """Carry *guest* away, to the agent at *host*:*port*."""

    migration_id: str
    guest: str
    qmp: str
    host: str
    port: int
    destination_guest: str
    state_dir: Path
    parameters: MigrationParameters
    encryption: Encryption = field(default_factory=Encryption)
    receivers: tuple[str, ...] | None = None
    """Patterns of the certificate names whose agents may receive this guest; None: all."""

    @classmethod
    def from_packet(cls, packet: Mapping[str, Any]) -> SourceJob:
        """Raises KeyError or RefusedError on a packet that is no source job."""
        return cls(
            migration_id=packet["migration-id"],
            guest=packet["guest"],
            qmp=packet["qmp"],
            host=packet["host"],
            port=int(packet["port"]),
            destination_guest=packet.get("destination-guest") or packet["guest"],
            state_dir=Path(packet["state-dir"]),
            parameters=MigrationParameters.from_dict(packet.get("parameters") or {}),
            encryption=Encryption.from_packet(packet["encryption"]),
            receivers=None if packet["receivers"] is None else tuple(packet["receivers"]),
        )

    def route(self) -> Route:
        """The way to the destination. Raises RefusedError when this host's certificates cannot be
        used."""
        return find_route(Address(self.host, self.port), self.encryption, self.check_receiver)

    def check_receiver(self, certificate: CertificateInfo) -> None:
        """Raise RefusedError when the holder of *certificate* may not receive this guest."""
        if self.receivers is None or any_matches(certificate.names, self.receivers):
            return
        raise RefusedError(
            f"certificate {certificate} may not receive guest {self.guest} from this host",
            advice="add the guest to may-receive of the certificate in [peers] on this host",
        )


@dataclass(frozen=True, slots=True)
class DestinationJob:
    """Receive a guest into the QEMU at *qmp*; the control connection's descriptor came along."""

    migration_id: str
    guest: str
    qmp: str
    state_dir: Path
    min_version: int
    max_version: int
    source_agent: str
    tls: SecondSession | None = None
    launch: Launch | None = None
    """How to start the QEMU where none listens at *qmp*; None: that is refused."""

    @classmethod
    def from_packet(cls, packet: Mapping[str, Any]) -> DestinationJob:
        """Raises KeyError on a packet that is no destination job."""
        hello = packet["hello"]
        return cls(
            migration_id=packet["migration-id"],
            guest=packet["guest"],
            qmp=packet["qmp"],
            state_dir=Path(packet["state-dir"]),
            min_version=int(hello["min-version"]),
            max_version=int(hello["max-version"]),
            source_agent=str(hello["agent"]),
            tls=SecondSession.from_packet(packet.get("tls")),
            launch=Launch.from_packet(packet["launch"]) if packet.get("launch") else None,
        )

    def hello(self) -> Hello:
        """The source's first message, which the daemon has read."""
        return Hello(
            min_version=self.min_version,
            max_version=self.max_version,
            migration_id=self.migration_id,
            guest=self.guest,
            agent=self.source_agent,
        )

    def version(self) -> int:
        """The newest version that both sides speak. Raises RefusedError when there is none."""
        newest = min(self.max_version, MAX_VERSION)
        if newest < max(self.min_version, MIN_VERSION):
            raise RefusedError(
                f"the source speaks versions {self.min_version} to {self.max_version} of the"
                f" protocol, this agent {MIN_VERSION} to {MAX_VERSION}",
                advice="bring both hosts to the same version of pageferry",
            )
        return newest
