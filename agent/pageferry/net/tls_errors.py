"""What a failed handshake means to the operator: which host's which file, and what to do.

The numbers are those of X.509 verification in libssl (``X509_V_ERR_*``, x509_vfy.h) and of TLS
alerts (RFC 8446, 6.2).
"""

from __future__ import annotations

from typing import Final

from pageferry.certificates.description import date
from pageferry.certificates.files import AUTHORITIES, REVOCATIONS, Side
from pageferry.net.tls import Session, TlsError, TlsFailure

_ALERTS: Final = {
    40: "refuses what this side offers",
    42: "cannot use this host's certificate",
    43: "refuses the kind of this host's certificate",
    44: "says that this host's certificate has been revoked",
    45: "says that this host's certificate has expired or is not valid yet",
    46: "does not accept this host's certificate",
    48: "does not know the authority of this host's certificate",
    70: "speaks another version of TLS",
    116: "wants a certificate, and got none",
    120: "is no pageferryd, or of another version",
}

_SAME_AUTHORITY: Final = (
    f"give both hosts certificates of one authority, and its certificate as {AUTHORITIES}"
)
_RENEW: Final = "{file}: issue a new one, as with `pageferry certs host`, and compare the clocks"
_NOT_ISSUED: Final = (
    f"{{whose}} was not issued by an authority in {AUTHORITIES}, but by {{issuer}}",
    _SAME_AUTHORITY,
)
_WRONG_HOST: Final = (
    "{whose} is not for {host}",
    "migrate to a name or address that it is for, or issue {file} with that one, as with"
    " `pageferry certs host NAME --dns … --ip …`",
)
_NO_REVOCATIONS: Final = (
    "whether {whose} has been revoked is not known: {text}",
    f"renew {REVOCATIONS} on this host, or remove it",
)

_FAULTS: Final = {
    **dict.fromkeys((2, 7, 18, 19, 20, 21, 24, 27), _NOT_ISSUED),
    **dict.fromkeys((3, 11, 12), _NO_REVOCATIONS),
    **dict.fromkeys((62, 64), _WRONG_HOST),
    9: ("{whose} is not valid before {not_before}", _RENEW),
    10: ("{whose} expired on {not_after}", _RENEW),
    23: (f"{{whose}} has been revoked ({REVOCATIONS})", "{file}: issue a new one"),
    26: ("{whose} is not meant for a {side}", "{file}: issue one that is"),
}
"""What this side found wrong with the other's certificate: message and advice."""

_OTHER_FAULT: Final = ("{whose} is not accepted: {text}", "{file}: issue a new one")

_NO_TLS: Final = (
    "{peer} does not speak TLS",
    "both hosts must use TLS, or both have plaintext = true in [daemon]",
)
_OLD_TLS: Final = ("{peer} speaks no TLS 1.3", "connect with a pageferryd of this version")

_REASONS: Final = {
    **dict.fromkeys(("wrong version number", "http request", "packet length too long"), _NO_TLS),
    **dict.fromkeys(("unsupported protocol", "no protocols available"), _OLD_TLS),
    "peer did not return a certificate": (
        "{peer} has no certificate to show",
        "give it a {side}-cert.pem",
    ),
    "no application protocol": (
        "{peer} is no pageferryd",
        "check the address, and what lies between",
    ),
}
"""libssl's own names of what went wrong."""

_OTHER_REASON: Final = (
    "no TLS session with {peer}: {text}",
    "see the logs of pageferryd on both hosts",
)


def explained(error: TlsError, session: Session, peer: str, host: str | None) -> TlsError:
    """*error* once more, for people. *peer* is what to call the other side, *host* the name that
    it was to have."""
    failure = error.failure
    own_side = session.context.material.side
    if failure.verify_error:
        message, advice = _FAULTS.get(failure.verify_error, _OTHER_FAULT)
    elif failure.alert is not None:
        what = _ALERTS.get(failure.alert, f"ended the TLS session with alert {failure.alert}")
        message = f"{{peer}} {what}"
        advice = f"see the log of pageferryd there, and check {own_side.certificate} here"
    else:
        message, advice = _REASONS.get(failure.reason, _OTHER_REASON)
    values = _values(failure, own_side, peer, host)
    return TlsError(message.format_map(values), failure, advice=advice.format_map(values))


def _values(failure: TlsFailure, own_side: Side, peer: str, host: str | None) -> dict[str, str]:
    """What the messages speak of."""
    other_side = Side.CLIENT if own_side is Side.SERVER else Side.SERVER
    info = failure.certificate
    is_own = failure.verify_depth == 0
    whose = f"the certificate of {peer}" if is_own else f"the authority of {peer}'s certificate"
    return {
        "peer": peer,
        "host": host or "",
        "side": other_side.value,
        "file": f"{other_side.certificate} there" if is_own else f"{AUTHORITIES} there",
        "whose": f"{whose} ({info})" if info is not None else whose,
        "issuer": info.issuer if info is not None else "another one",
        "not_before": date(info.not_before) if info is not None else "a later time",
        "not_after": date(info.not_after) if info is not None else "an earlier time",
        "text": (failure.verify_text if failure.verify_error else failure.text) or failure.reason,
    }
