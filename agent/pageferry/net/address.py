"""Addresses of other agents, as an operator writes them: ``HOST``, ``HOST:PORT``,
``[IPv6]:PORT``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from pageferry.model.errors import RefusedError

DEFAULT_PORT = 49400
"""Where pageferryd listens. In the dynamic range, beside the ports 49152 to 49215 that belong to
QEMU and libvirt by custom."""

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
"""A host's name, or an IPv4 address."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where another agent listens. ``host`` is a name or an address, IPv6 without brackets."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this host for certain, by the text alone: no name is looked up."""
        return is_loopback(self.host)


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """*text* as an address. Raises RefusedError, with advice, when it is none."""
    host, port_text = _split(text)
    if ":" in host:
        _check_ipv6(host, text)
    elif not _NAME.fullmatch(host) or len(host) > 253:
        raise _refused(text, "has no host name or address")
    if port_text is None:
        return Address(host, default_port)
    # int() would take spaces, signs, underscores and digits of other scripts as well.
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not 0 < int(port_text) < 65536:
        raise _refused(text, f"has {port_text!r} for a port")
    return Address(host, int(port_text))


def is_loopback(host: str) -> bool:
    """Whether *host* is this host for certain: ``localhost``, or an address of the loopback net."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or ":" not in host:
            raise _refused(text, "has brackets that hold no IPv6 address")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:  # a bare IPv6 address; a port after it could not be told from it
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _check_ipv6(host: str, text: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError as error:
        raise _refused(text, f"is no IPv6 address ({error})") from error


def _refused(text: str, what: str) -> RefusedError:
    return RefusedError(
        f"the address {text!r} {what}",
        advice="write HOST, HOST:PORT or [IPv6]:PORT",
    )
