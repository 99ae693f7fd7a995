"""Certificates made in the test: an authority, and directories of hosts as operators have them."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from pageferry.certificates.authority import (
    HOST_DAYS,
    Authority,
    HostNames,
    issue_host,
    make_authority,
)
from pageferry.certificates.files import REVOCATIONS, Side, load_material
from pageferry.net.tls import TlsContext

NOW = datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True, slots=True)
class Pki:
    """An authority and a folder under which it gives hosts their directories."""

    folder: Path
    authority: Authority

    @classmethod
    def make(cls, folder: Path, name: str = "test authority") -> Pki:
        """A new one."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, make_authority(name, NOW - datetime.timedelta(days=3000)))

    def host(
        self,
        name: str,
        *,
        dns: tuple[str, ...] = (),
        ip: tuple[str, ...] = ("127.0.0.1",),
        made: datetime.datetime = NOW,
        days: int = HOST_DAYS,
        force: bool = False,
    ) -> Path:
        """The directory of a host, with all its files."""
        directory = self.folder / name
        host = HostNames.of(name, dns, ip)
        issue_host(self.authority, host, directory, made, days=days, force=force)
        return directory

    def expired(self, name: str) -> Path:
        """One whose certificates ended yesterday."""
        return self.host(name, made=NOW - datetime.timedelta(days=11), days=10)

    def not_yet_valid(self, name: str) -> Path:
        """One whose certificates begin in ten days."""
        return self.host(name, made=NOW + datetime.timedelta(days=10))

    def revoke(self, revoked: Path, where: Path) -> None:
        """Put a list into *where* that revokes the certificates of *revoked*."""
        until = NOW + datetime.timedelta(days=30)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.authority.certificate.subject)
            .last_update(NOW - datetime.timedelta(hours=1))
            .next_update(until)
        )
        for side in Side:
            certificate = x509.load_pem_x509_certificate((revoked / side.certificate).read_bytes())
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(NOW - datetime.timedelta(hours=1))
                .build()
            )
        signed = builder.sign(self.authority.key, hashes.SHA256())
        (where / REVOCATIONS).write_bytes(signed.public_bytes(Encoding.PEM))


def context(directory: Path, side: Side) -> TlsContext:
    """One side's context of a host's directory."""
    return TlsContext(load_material(directory, side))
