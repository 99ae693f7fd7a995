"""What a certificate says: whose it is, how long it is good for.

Parsed by the cryptography library, also for certificates that have not been verified: those are
only ever described in an error.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """One certificate. ``names``: its DNS names and IP addresses and its subject's common name,
    lower-case, each once. ``fingerprint``: SHA-256 over all of it, in hexadecimal digits.
    """

    names: tuple[str, ...]
    issuer: str
    not_before: datetime.datetime
    not_after: datetime.datetime
    fingerprint: str

    def __str__(self) -> str:
        return ", ".join(self.names) or f"certificate {self.fingerprint[:16]}"

    def fault_at(self, now: datetime.datetime) -> str:
        """``expired on …``, ``is not valid before …``, or "" while it is valid at *now*."""
        if now > self.not_after:
            return f"expired on {date(self.not_after)}"
        if now < self.not_before:
            return f"is not valid before {date(self.not_before)}"
        return ""


def date(moment: datetime.datetime) -> str:
    """As operators compare it with their clocks."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def describe_der(der: bytes) -> CertificateInfo:
    """The certificate that *der* is. Raises ValueError when it is none that can be read."""
    return _describe(x509.load_der_x509_certificate(der))


def describe_pem(pem: bytes) -> list[CertificateInfo]:
    """The certificates in *pem*, in order. Raises ValueError when there is none."""
    return [_describe(each) for each in x509.load_pem_x509_certificates(pem)]


def public_bytes(key: PublicKeyTypes) -> bytes:
    """The same for the same key, wherever it was found."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _describe(certificate: x509.Certificate) -> CertificateInfo:
    return CertificateInfo(
        names=_names(certificate),
        issuer=certificate.issuer.rfc4514_string(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    names: list[str] = []
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        pass
    else:
        names += extension.value.get_values_for_type(x509.DNSName)
        names += map(str, extension.value.get_values_for_type(x509.IPAddress))
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        value = attribute.value
        names.append(value if isinstance(value, str) else value.decode(errors="replace"))
    printable = (name for name in names if name.isprintable())
    return tuple(dict.fromkeys(name.lower().rstrip(".") for name in printable))
