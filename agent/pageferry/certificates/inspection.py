"""How this host's certificates are: for whom, until when, and what is wrong with them."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from pageferry.certificates.description import (
    CertificateInfo,
    date,
    describe_pem,
    public_bytes,
)
from pageferry.certificates.files import (
    AUTHORITIES,
    CertificateFileError,
    Material,
    Side,
    load_material,
)

WARN_DAYS: Final = 30
"""An operator wants to hear of a certificate's end a while before it."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file. ``degree``: ``good``, ``expires`` (within WARN_DAYS) or ``bad``; ``reason`` says
    what is wrong, and ``advice`` what to do.
    """

    path: Path
    degree: str
    reason: str
    advice: str = ""
    names: tuple[str, ...] = ()
    not_after: datetime.datetime | None = None

    def as_dict(self) -> dict[str, Any]:
        """For programs; times as ISO 8601."""
        return {
            "file": str(self.path),
            "degree": self.degree,
            "reason": self.reason,
            "advice": self.advice,
            "names": list(self.names),
            "not-after": self.not_after.isoformat() if self.not_after else None,
        }


def inspect_directory(directory: Path, now: datetime.datetime) -> list[FileReport]:
    """Look at the authority and at both sides' certificates and keys. Never raises."""
    reports: list[FileReport] = []
    for side in Side:
        try:
            material = load_material(directory, side)
        except CertificateFileError as error:
            path = directory / side.certificate
            reports.append(FileReport(path, "bad", error.message, error.advice))
            continue
        if all(report.path.name != AUTHORITIES for report in reports):
            reports += _certificates(material.path(AUTHORITIES), material.authorities, now)
        reports += _certificates(material.path(side.certificate), material.certificate, now)
        fault = key_fault(material)
        if fault:
            path = material.path(side.key)
            advice = "put key and certificate there that belong together"
            reports.append(FileReport(path, "bad", fault, advice))
    return reports


def key_fault(material: Material) -> str:
    """What is wrong with the key, seen beside its certificate; or ""."""
    try:
        key = load_pem_private_key(material.key, password=None)
        certificate = load_pem_x509_certificates(material.certificate)[0]
    except TypeError:
        return "it is locked by a passphrase, and nobody is there to type it"
    except ValueError as error:
        return f"no key that can be used: {error}"
    if public_bytes(key.public_key()) != public_bytes(certificate.public_key()):
        return f"it is not the key of {material.side.certificate}"
    return ""


def _certificates(path: Path, pem: bytes, now: datetime.datetime) -> list[FileReport]:
    try:
        return [_report(path, each, now) for each in describe_pem(pem)]
    except ValueError as error:
        advice = "put a certificate there, as PEM"
        return [FileReport(path, "bad", f"no certificate that can be read: {error}", advice)]


def _report(path: Path, info: CertificateInfo, now: datetime.datetime) -> FileReport:
    fault = info.fault_at(now)
    left = info.not_after - now
    reason = fault or f"{info}, until {date(info.not_after)}, in {left.days} days"
    soon = left < datetime.timedelta(days=WARN_DAYS)
    degree = "bad" if fault else "expires" if soon else "good"
    advice = "issue a new one, as with `pageferry certs host --force`" if degree != "good" else ""
    return FileReport(path, degree, reason, advice, info.names, info.not_after)
