"""Which connections are encrypted, and this host's certificates, loaded anew when they change."""

from __future__ import annotations

import datetime
import ipaddress
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pageferry.certificates.files import (
    DEFAULT_DIRECTORY,
    CertificateFileError,
    Side,
    Stamp,
    load_material,
    stamp,
)
from pageferry.net.address import is_loopback
from pageferry.net.tls import TlsContext, expiry_fault

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Encryption:
    """What the operator wants. Encrypted is everything but loopback, which ``loopback`` adds;
    ``plaintext`` encrypts nothing.
    """

    directory: Path = DEFAULT_DIRECTORY
    plaintext: bool = False
    loopback: bool = False

    def is_needed(self, host: str) -> bool:
        """Whether a connection to, or from, *host* (a name or an address) must be encrypted."""
        return not self.plaintext and (self.loopback or not is_loopback(_unmapped(host)))

    @classmethod
    def from_packet(cls, packet: Mapping[str, Any]) -> Encryption:
        """What `to_packet` made."""
        return cls(Path(packet["directory"]), packet["plaintext"], packet["loopback"])

    def to_packet(self) -> dict[str, Any]:
        """For a worker process."""
        return {
            "directory": str(self.directory),
            "plaintext": self.plaintext,
            "loopback": self.loopback,
        }


class Credentials:
    """One side's certificates of this host, as they are on disk now.

    Files are looked at for every connection, and read again when one of them has changed. While
    what is there cannot be used (a certificate is there and its key not yet), what was read before
    goes on being used.
    """

    def __init__(self, directory: Path, side: Side) -> None:
        self._directory = directory
        self._side = side
        self._context: TlsContext | None = None
        self._stamp: Stamp | None = None
        self._fault: CertificateFileError | None = None

    def context(self) -> TlsContext:
        """The context to use now. Raises CertificateFileError when there never was one that can
        be used."""
        now = stamp(self._directory, self._side)
        if now != self._stamp:
            self._stamp = now
            self._load()
        if self._context is None:
            assert self._fault is not None
            raise self._fault
        return self._context

    def reload(self) -> None:
        """Read the files now, changed or not. Raises CertificateFileError when they cannot be used;
        those from before then go on being used."""
        self._stamp = stamp(self._directory, self._side)
        self._load()
        if self._fault is not None:
            raise self._fault

    def valid_context(self) -> TlsContext:
        """As `context`; raises CertificateFileError also when this host's certificate has expired
        or is not valid yet: the other side would refuse it."""
        context = self.context()
        fault = expiry_fault(context, datetime.datetime.now(datetime.UTC))
        if fault:
            raise CertificateFileError(
                fault, advice="issue a new one, as with `pageferry certs host`, or set the clock"
            )
        return context

    def _load(self) -> None:
        had_one = self._context is not None
        try:
            self._context = TlsContext(load_material(self._directory, self._side))
            self._fault = None
        except CertificateFileError as error:
            self._fault = error
            if had_one:
                log.error("%s; the certificates from before stay in use: %s", error, error.advice)
            return
        until = self._context.own.not_after
        log.info("%s certificate: %s, until %s", self._side.value, self._context.own, until)


def _unmapped(host: str) -> str:
    """An IPv4 address that came in through an IPv6 socket, as itself."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
