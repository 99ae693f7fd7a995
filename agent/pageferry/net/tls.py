"""Mutual TLS: contexts from a host's files, and sessions on sockets, driven step by step.

The mechanism is in C on libssl (native/tls*.c), so that guest pages can go through it without the
interpreter, and so that control and data connections verify their peers by the same rules:

- TLS 1.3 and nothing older: every agent speaks it, so there is nobody to be compatible with.
- Both sides present a certificate of the authority in ca-cert.pem, good for their side. The
  connecting side checks that the other's is for the host it meant to reach, by its DNS names or IP
  addresses; the subject is not looked at for that.
- No tickets, no resumption, no early data: what is not there cannot be replayed.
"""

from __future__ import annotations

import datetime
import errno
import ipaddress
import os
from dataclasses import dataclass
from typing import Any

from pageferry.certificates.description import CertificateInfo, describe_der, describe_pem
from pageferry.certificates.files import CertificateFileError, Material, Side
from pageferry.model.errors import PeerLostError
from pageferry.net._tls import ffi, lib

EXPORT_BYTES = 32

_PARTS = {
    lib.PF_TLS_AUTHORITIES: "ca-cert.pem",
    lib.PF_TLS_REVOCATIONS: "ca-crl.pem",
}


class NotReadyError(Exception):
    """A non-blocking socket has to become readable, or writable, before this can go on."""

    def __init__(self, *, write: bool) -> None:
        super().__init__("not ready")
        self.write = write


@dataclass(frozen=True, slots=True)
class TlsFailure:
    """What went wrong in a session, as libssl tells it; see ``native/tls_api.h``.

    ``certificate`` is the peer's, or the one of its chain that was found wrong, where it is known.
    """

    verify_error: int
    verify_depth: int
    verify_text: str
    alert: int | None
    reason: str
    text: str
    certificate: CertificateInfo | None


class TlsError(PeerLostError):
    """A session failed. ``failure`` says how; net.tls_errors says it to operators."""

    def __init__(self, message: str, failure: TlsFailure, *, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.failure = failure


class TlsContext:
    """What all connections of one side of this host have in common.

    ``own`` is this host's certificate.
    """

    def __init__(self, material: Material) -> None:
        """Raises CertificateFileError, naming the file that cannot be used."""
        self.material = material
        self.own = _own_certificate(material)
        failure = ffi.new("struct pf_tls_failure *")
        context = ffi.new("struct pf_tls_context **")
        texts = (material.authorities, material.certificate, material.key, material.revocations)
        arguments = [value for text in texts for value in (text, len(text))]
        is_server = material.side is Side.SERVER
        error = lib.pf_tls_context_create(is_server, *arguments, failure, context)
        if error:
            raise _unusable(material, failure, error)
        self._context = ffi.gc(context[0], lib.pf_tls_context_destroy)

    def session(
        self, socket_fd: int, protocol: str, host: str | None = None, *, read_ahead: bool = False
    ) -> Session:
        """A session on a connected socket, which stays the caller's and must outlive it.

        The other side must come with the same *protocol* (an ALPN name). *host* is the name or
        address that its certificate must be for. With *read_ahead* bytes that follow the session
        may be taken off the socket.
        """
        session = ffi.new("struct pf_tls **")
        host_bytes = ffi.NULL if host is None else host.rstrip(".").encode("idna")
        error = lib.pf_tls_create(
            self._context,
            socket_fd,
            protocol.encode(),
            host_bytes,
            host is not None and _is_address(host),
            read_ahead,
            session,
        )
        if error:
            raise OSError(error, f"no TLS session: {os.strerror(error)}")
        return Session(self, session[0])


class Session:
    """One TLS session. One thread at a time may use it.

    Every method but `close` raises NotReadyError on a non-blocking socket that is not ready,
    TlsError when TLS failed, and OSError as the socket does; after the last two the session is of
    no more use.
    """

    def __init__(self, context: TlsContext, session: Any) -> None:
        self.context = context
        self._session: Any = ffi.gc(session, lib.pf_tls_destroy)

    def handshake(self) -> None:
        """Go on with the handshake; when it returns, both sides are known to each other."""
        self._check(lib.pf_tls_handshake(self._session))

    def receive(self, most_bytes: int) -> bytes:
        """What comes next; b"" when the peer has ended the session as it should."""
        buffer = ffi.new("uint8_t[]", most_bytes)
        received = ffi.new("size_t *")
        self._check(lib.pf_tls_read(self._session, buffer, most_bytes, received))
        return bytes(ffi.buffer(buffer, received[0]))

    def send(self, data: bytes) -> int:
        """Send the first bytes of *data*; returns how many. After NotReadyError the next call must
        begin with the same bytes."""
        written = ffi.new("size_t *")
        self._check(lib.pf_tls_write(self._session, data, len(data), written))
        return int(written[0])

    def end(self) -> None:
        """Say that nothing more will be sent. Receiving goes on."""
        self._check(lib.pf_tls_end(self._session))

    def send_all(self, data: bytes | memoryview) -> None:
        """Send all of *data*, on a blocking socket."""
        with ffi.from_buffer("uint8_t[]", data) as memory:
            self._check(lib.pf_tls_send_all(self._session, memory, len(data)))

    def receive_into(self, view: memoryview) -> None:
        """Fill *view*, from a blocking socket. Raises ConnectionResetError when it ends before."""
        with ffi.from_buffer("uint8_t[]", view, require_writable=True) as memory:
            self._check(lib.pf_tls_receive_exact(self._session, memory, len(view)))

    @property
    def wire_address(self) -> int:
        """Where its ``struct pf_wire`` lies, for kernel.transfer; good until `close`."""
        return int(ffi.cast("uintptr_t", lib.pf_tls_wire(self._session)))

    @property
    def cipher(self) -> str:
        """The cipher suite in use."""
        name: bytes = ffi.string(lib.pf_tls_cipher(self._session))
        return name.decode()

    def peer(self) -> CertificateInfo:
        """The other side's certificate; only after the handshake."""
        certificate = self._certificate()
        if certificate is None:
            raise PeerLostError("the certificate of the other side cannot be read")
        return certificate

    def export(self) -> bytes:
        """A value that only the two ends of this very session know (RFC 8446, 7.5)."""
        value = ffi.new("uint8_t[]", EXPORT_BYTES)
        self._check(lib.pf_tls_export(self._session, value, EXPORT_BYTES))
        return bytes(ffi.buffer(value))

    def close(self) -> None:
        """Free it, without a word to the peer; the socket stays open."""
        if self._session is not None:
            ffi.release(self._session)
            self._session = None

    def _certificate(self) -> CertificateInfo | None:
        der = ffi.new("uint8_t[]", lib.PF_TLS_CERTIFICATE_BYTES)
        length = lib.pf_tls_certificate(self._session, der)
        try:
            return describe_der(bytes(ffi.buffer(der, length))) if length else None
        except ValueError:
            return None

    def _check(self, error: int) -> None:
        if not error:
            return
        if error == errno.EAGAIN:
            raise NotReadyError(write=lib.pf_tls_want_write(self._session))
        failure = self._failure()
        # A connection that ends after an alert ended because of it.
        if error == errno.EPROTO or failure.alert is not None:
            raise TlsError(f"TLS failed: {failure.text or failure.reason}", failure)
        raise OSError(error, os.strerror(error))

    def _failure(self) -> TlsFailure:
        native = lib.pf_tls_failure(self._session)
        return TlsFailure(
            verify_error=native.verify_error,
            verify_depth=native.verify_depth,
            verify_text=_text(lib.pf_tls_verify_text(native.verify_error)),
            alert=None if native.alert < 0 else native.alert,
            reason=_text(native.reason),
            text=_text(native.text),
            certificate=self._certificate(),
        )


def expiry_fault(context: TlsContext, now: datetime.datetime) -> str:
    """What is wrong with this host's own certificate at *now*, in a sentence that names the file;
    "" when nothing is."""
    fault = context.own.fault_at(now)
    if not fault:
        return ""
    path = context.material.path(context.material.side.certificate)
    return f"this host's certificate {path} {fault}"


def _own_certificate(material: Material) -> CertificateInfo:
    path = material.path(material.side.certificate)
    try:
        return describe_pem(material.certificate)[0]
    except ValueError as error:
        raise CertificateFileError(
            f"{path} holds no certificate that can be read: {error}",
            advice="put a certificate there, as PEM",
        ) from error


def _unusable(material: Material, failure: Any, error: int) -> CertificateFileError:
    side = material.side
    why = _text(failure.reason) or _text(failure.text) or os.strerror(error)
    if failure.part == lib.PF_TLS_KEY_OF_CERTIFICATE:
        return CertificateFileError(
            f"{material.path(side.key)} is not the key of {material.path(side.certificate)}",
            advice="put key and certificate there that belong together",
        )
    if failure.part == lib.PF_TLS_KEY:
        return CertificateFileError(
            f"{material.path(side.key)} holds no key that can be used ({why})",
            advice="put the key there as PEM, without a passphrase: nobody is there to type it",
        )
    name = _PARTS.get(failure.part, side.certificate)
    return CertificateFileError(
        f"{material.path(name)} cannot be used ({why})",
        advice="put what belongs there, as PEM; keys must have 2048 bits if RSA, 224 if ECDSA",
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _text(native: Any) -> str:
    text: bytes = ffi.string(native)
    return text.decode(errors="replace")
