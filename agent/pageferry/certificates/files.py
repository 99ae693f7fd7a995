"""The files with a host's certificates and keys, by the names that QEMU and libvirt use.

One directory holds them. A connection's connecting side presents the client's certificate, the
listening side the server's::

    ca-cert.pem       the authorities that both sides' certificates must come from
    ca-crl.pem        certificates that these have revoked; need not be there
    server-cert.pem   server-key.pem
    client-cert.pem   client-key.pem
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from pageferry.model.errors import RefusedError

DEFAULT_DIRECTORY: Final = Path("/etc/pageferry/tls")

AUTHORITIES: Final = "ca-cert.pem"
REVOCATIONS: Final = "ca-crl.pem"

MAX_FILE_BYTES: Final = 1 << 20
"""More than any bundle of authorities; a file that is longer is none."""


class Side(Enum):
    """Which side of a connection a certificate is for."""

    SERVER = "server"
    CLIENT = "client"

    @property
    def certificate(self) -> str:
        """The name of its certificate's file."""
        return f"{self.value}-cert.pem"

    @property
    def key(self) -> str:
        """The name of its key's file."""
        return f"{self.value}-key.pem"


class CertificateFileError(RefusedError):
    """This host's certificates or keys cannot be used. Nothing was sent or received."""

    def __init__(self, message: str, *, advice: str) -> None:
        super().__init__(message, guest_state="", advice=advice)


@dataclass(frozen=True, slots=True)
class Material:
    """What one side's files hold, as PEM. ``revocations`` is empty where there are none."""

    directory: Path
    side: Side
    authorities: bytes
    certificate: bytes
    key: bytes
    revocations: bytes

    def path(self, name: str) -> Path:
        """Where the file of that name lies."""
        return self.directory / name


Stamp = tuple[tuple[int, int, int, int] | None, ...]


def stamp(directory: Path, side: Side) -> Stamp:
    """Changes whenever one of the side's files does: replaced, rewritten, or other permissions."""
    names = (AUTHORITIES, REVOCATIONS, side.certificate, side.key)
    return tuple(_stamp(directory / name) for name in names)


def load_material(directory: Path, side: Side) -> Material:
    """Read one side's files. Raises CertificateFileError, naming the file and what to do."""
    try:
        revocations = _read(directory / REVOCATIONS)
    except FileNotFoundError:
        revocations = b""
    return Material(
        directory=directory,
        side=side,
        authorities=_needed(directory / AUTHORITIES),
        certificate=_needed(directory / side.certificate),
        key=_needed(directory / side.key, private=True),
        revocations=revocations,
    )


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)


def _needed(path: Path, *, private: bool = False) -> bytes:
    try:
        return _read(path, private=private)
    except FileNotFoundError as error:
        raise CertificateFileError(
            f"{path} is missing, and connections to other hosts use TLS",
            advice="make certificates with `pageferry certs`, or say with directory in [tls] where"
            " they are, or, in a network that you trust with the memory of your guests, set"
            " plaintext = true in [daemon]",
        ) from error


def _read(path: Path, *, private: bool = False) -> bytes:
    """Raises FileNotFoundError and CertificateFileError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            raise CertificateFileError(
                f"{path} is no file, or more than {MAX_FILE_BYTES} bytes long",
                advice="put the certificate or key itself there, as PEM",
            )
        if private:
            _check_private(path, status)
        try:
            return file.read(MAX_FILE_BYTES)
        except OSError as error:
            raise _unreadable(path, error) from error


def _check_private(path: Path, status: os.stat_result) -> None:
    """Whoever reads a host's key can take guests in its name."""
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise CertificateFileError(
            f"the key {path} can be read or changed by others"
            f" (mode {stat.S_IMODE(status.st_mode):04o})",
            advice=f"chmod 0600 {path}; if others have read it, issue a new one",
        )
    if status.st_uid not in (0, os.geteuid()):
        raise CertificateFileError(
            f"the key {path} belongs to another user (uid {status.st_uid})",
            advice=f"chown root {path}",
        )


def _unreadable(path: Path, error: OSError) -> CertificateFileError:
    return CertificateFileError(
        f"cannot read {path}: {error.strerror}", advice="check its permissions"
    )
