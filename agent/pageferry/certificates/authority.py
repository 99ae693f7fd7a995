"""A small certificate authority for a start: one key, certificates for hosts, all files on disk.

Keys are ECDSA on P-256, which every libssl takes and whose handshakes are cheap. A host gets two
certificates, since what is good for serving is not good for asking: the extended key usage tells
them apart, and each side checks it.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pageferry.certificates.description import public_bytes
from pageferry.certificates.files import AUTHORITIES, Side
from pageferry.model.errors import RefusedError

AUTHORITY_KEY: Final = "ca-key.pem"

AUTHORITY_DAYS: Final = 3650
HOST_DAYS: Final = 730
"""Long enough not to be a chore, short enough that a lost key does not stay good for ever."""

CLOCK_SKEW: Final = datetime.timedelta(hours=1)
"""A new certificate is valid from a little before it was made: hosts' clocks differ."""

_DNS_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME: Final = re.compile(rf"(\*\.)?{_DNS_LABEL}(\.{_DNS_LABEL})*")

_USAGE: Final = {
    Side.SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
    Side.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
}


class AuthorityError(RefusedError):
    """No certificate was made, and no file was touched."""

    def __init__(self, message: str, *, advice: str) -> None:
        super().__init__(message, guest_state="", advice=advice)


@dataclass(frozen=True, slots=True)
class HostNames:
    """What a host's certificates are for. ``name`` is its subject's common name."""

    name: str
    dns: tuple[str, ...]
    addresses: tuple[str, ...]

    @classmethod
    def of(cls, name: str, dns: Sequence[str], addresses: Sequence[str]) -> HostNames:
        """*name* counts as one of the DNS names or addresses. Raises AuthorityError."""
        first_address = [name] if _is_address(name) else []
        first_dns = [] if first_address else [name]
        every_dns = tuple(dict.fromkeys((*first_dns, *dns)))
        every_address = tuple(
            dict.fromkeys(str(_address(each)) for each in (*first_address, *addresses))
        )
        for each in every_dns:
            if not _DNS_NAME.fullmatch(each) or len(each) > 253 or _is_address(each):
                raise AuthorityError(
                    f"{each!r} is no DNS name", advice="write it as in host-a.example"
                )
        if len(name) > 64:
            raise AuthorityError(
                f"{name!r} is longer than the 64 characters that a certificate's subject takes",
                advice="give a short name, and the long one with --dns",
            )
        return cls(name, every_dns, every_address)


@dataclass(frozen=True, slots=True)
class Authority:
    """The authority's certificate and key, loaded or just made."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(
        self, host: HostNames, side: Side, now: datetime.datetime, days: int = HOST_DAYS
    ) -> tuple[bytes, bytes]:
        """A new certificate of *host* and its key, as PEM. It never outlives the authority's."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(each) for each in host.dns]
        names += [x509.IPAddress(ipaddress.ip_address(each)) for each in host.addresses]
        until = min(now + datetime.timedelta(days=days), self.certificate.not_valid_after_utc)
        builder = _builder(host.name, key.public_key(), now, until)
        certificate = (
            builder.issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_USAGE[side]]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), _key_pem(key)


def make_authority(name: str, now: datetime.datetime, days: int = AUTHORITY_DAYS) -> Authority:
    """A new authority, in memory only."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, key.public_key(), now, now + datetime.timedelta(days=days))
    certificate = (
        builder.issuer_name(_subject(name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def create_authority(
    directory: Path, name: str, now: datetime.datetime, *, days: int, force: bool
) -> list[Path]:
    """Make an authority and write its certificate and key into *directory*. Returns the files.

    Raises AuthorityError, and has written nothing then, when one of them exists and not *force*.
    """
    authority = make_authority(name, now, days)
    certificate = authority.certificate.public_bytes(Encoding.PEM)
    files = {AUTHORITY_KEY: _key_pem(authority.key), AUTHORITIES: certificate}
    return _write(directory, files, force=force)


def load_authority(directory: Path) -> Authority:
    """The authority that `create_authority` wrote. Raises AuthorityError."""
    try:
        certificate = x509.load_pem_x509_certificate((directory / AUTHORITIES).read_bytes())
        key = load_pem_private_key((directory / AUTHORITY_KEY).read_bytes(), password=None)
    except FileNotFoundError as error:
        raise AuthorityError(
            f"{error.filename} is missing: there is no authority in {directory}",
            advice="make one with `pageferry certs init`, or say where it is with --ca",
        ) from error
    except OSError as error:
        raise AuthorityError(
            f"cannot read {error.filename}: {error.strerror}", advice="run this as root"
        ) from error
    except (ValueError, TypeError) as error:
        raise AuthorityError(
            f"the files in {directory} hold no authority that can be used: {error}",
            advice="use one made by `pageferry certs init`",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or public_bytes(
        key.public_key()
    ) != public_bytes(certificate.public_key()):
        raise AuthorityError(
            f"{directory / AUTHORITY_KEY} is not the key of {directory / AUTHORITIES}",
            advice="use both as `pageferry certs init` wrote them",
        )
    return Authority(certificate, key)


def issue_host(
    authority: Authority,
    host: HostNames,
    directory: Path,
    now: datetime.datetime,
    *,
    days: int,
    force: bool,
) -> list[Path]:
    """Write all files that *host* needs into *directory*. Returns them.

    Raises AuthorityError, and has written nothing then, when the authority has expired, or a file
    exists and not *force*.
    """
    if now > authority.certificate.not_valid_after_utc:
        raise AuthorityError(
            "the authority's own certificate has expired",
            advice="make a new one with `pageferry certs init --force`, and new certificates of all"
            " hosts with it",
        )
    files: dict[str, bytes] = {}
    for side in Side:
        files[side.certificate], files[side.key] = authority.issue(host, side, now, days)
    files[AUTHORITIES] = authority.certificate.public_bytes(Encoding.PEM)
    return _write(directory, files, force=force)


def _builder(
    name: str,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    until: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise AuthorityError(
            f"{text!r} is no IP address", advice="write it as in 192.0.2.7 or 2001:db8::7"
        ) from error


def _write(directory: Path, files: dict[str, bytes], *, force: bool) -> list[Path]:
    """Keys before certificates, each whole or not at all; keys are never readable by others."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        standing = [directory / name for name in files if (directory / name).exists()]
        if standing and not force:
            raise AuthorityError(
                f"{', '.join(map(str, standing))} would be overwritten",
                advice="choose another directory, or say --force if you mean it",
            )
        order = sorted(files, key=lambda name: not name.endswith("-key.pem"))
        for name in order:
            _write_file(directory / name, files[name])
        _fsync(directory)
    except OSError as error:
        raise AuthorityError(
            f"cannot write into {directory}: {error.strerror}",
            advice="choose another directory, or make room",
        ) from error
    return [directory / name for name in files]


def _write_file(path: Path, data: bytes) -> None:
    private = path.name.endswith("-key.pem")
    staged = path.with_name(f".{path.name}.new")
    staged.unlink(missing_ok=True)
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, 0o600 if private else 0o644)
        file.write(data)
        file.flush()
        os.fsync(fd)
    os.replace(staged, path)


def _fsync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
