"""Who may send a guest here, and that all connections of a migration come from the same agent."""

from __future__ import annotations

from typing import Any

from pageferry.certificates.description import CertificateInfo
from pageferry.daemon.guests import Guest
from pageferry.daemon.migrations import Migration
from pageferry.model.errors import RefusedError
from pageferry.net.handing_over import SecondSession
from pageferry.policy.peers import PeerRules


def check_sender(rules: PeerRules, certificate: CertificateInfo | None, guest: Guest) -> None:
    """Raise RefusedError when the holder of *certificate* (None: a connection without TLS) may not
    send *guest* to this host."""
    names = certificate.names if certificate is not None else ()
    if rules.may_send(names, guest.name):
        return
    if certificate is None:
        raise RefusedError(
            f"guest {guest.name} may be sent to this host with a certificate only: [peers] there"
            " says who may",
            advice="use TLS: set loopback = true in [tls] on both hosts when this is one host",
        )
    raise RefusedError(
        f"certificate {certificate} may not send guest {guest.name} to this host",
        advice="on that host, add the guest to may-send of the certificate in [peers]",
    )


def may_ask(rules: PeerRules, certificate: CertificateInfo | None, guest: str) -> bool:
    """Whether the holder of *certificate* (None: a connection without TLS) may be told what became
    of a migration of *guest*: it may send that guest here. The name is empty where there is no
    journal, of which whoever may send nothing at all is not told either.
    """
    names = certificate.names if certificate is not None else ()
    return rules.may_send(names, guest) if guest else rules.may_send_any(names)


def check_same_certificate(migration: Migration, certificate: CertificateInfo | None) -> None:
    """Raise RefusedError when *certificate* is not the one that *migration* was begun with."""
    if migration.fingerprint != (certificate.fingerprint if certificate else ""):
        raise RefusedError(
            f"migration {migration.migration_id} was begun with another certificate than"
            f" {certificate or 'none'}",
            advice="when certificates were replaced meanwhile, start a new migration",
        )


def packet_of(second_session: SecondSession | None) -> dict[str, Any] | None:
    """For the worker; None where the connection is not encrypted."""
    return second_session.to_packet() if second_session is not None else None
