"""The configuration's keys in words: for the reference and the manual. config.py reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pageferry.certificates.files import DEFAULT_DIRECTORY
from pageferry.control.client import DEFAULT_SOCKET
from pageferry.daemon.config import DEFAULT_STATE_DIRECTORY, METRICS_PORT
from pageferry.net.address import DEFAULT_PORT


@dataclass(frozen=True, slots=True)
class KeyDoc:
    """One key. ``default`` as it would be written; empty where there is none."""

    table: str
    key: str
    kind: str
    default: str
    meaning: str
    needs_restart: bool = False


TABLES: Final = {
    "daemon": "The daemon itself.",
    "metrics": "Metrics for Prometheus; none without this table.",
    "tls": "Encryption between hosts.",
    "peers.NAME": "What the agent whose certificate has that name may do. Without any such table,"
    " whoever has a certificate of the authority may send and receive any guest.",
    "defaults": "Parameters of migrations that do not say otherwise.",
    "launch-from-source": "Start the QEMUs of guests that have no launch by the source's command"
    " line, where it holds only what is known to be safe (docs/launching.md). Never without it.",
    "guests.NAME": "One table for each guest of this host, by its name to peers and operators.",
}

KEYS: Final = (
    KeyDoc(
        "daemon",
        "listen",
        '"HOST:PORT"',
        f'"127.0.0.1:{DEFAULT_PORT}"',
        "where other agents connect",
        True,
    ),
    KeyDoc(
        "daemon",
        "plaintext",
        "true or false",
        "false",
        "encrypt nothing: let guests' memory cross the network in the clear",
        True,
    ),
    KeyDoc(
        "daemon",
        "control-socket",
        "a path",
        f'"{DEFAULT_SOCKET}"',
        "the UNIX socket that commands come on",
        True,
    ),
    KeyDoc(
        "daemon",
        "control-socket-mode",
        'a mode, as "0660"',
        '"0600", or "0660" with read-only-group',
        "who can connect to it may do everything, but for the read-only group",
        True,
    ),
    KeyDoc(
        "daemon",
        "read-only-group",
        "a group's name",
        "",
        "the socket belongs to this group, whose members may only use query commands; root and the"
        " daemon's own user always may do everything",
        True,
    ),
    KeyDoc(
        "daemon",
        "state-directory",
        "a path",
        f'"{DEFAULT_STATE_DIRECTORY}"',
        "journals and history; made with mode 0700, for one daemon alone",
        True,
    ),
    KeyDoc(
        "daemon",
        "guest-sockets",
        "a path with {name}",
        "",
        'where QMP sockets of guests lie that are not named, as in "/run/qemu/{name}.qmp"',
    ),
    KeyDoc(
        "tls",
        "directory",
        "a path",
        f'"{DEFAULT_DIRECTORY}"',
        "where this host's certificates are, by the names that QEMU and libvirt use; changed files"
        " are noticed without a restart",
        True,
    ),
    KeyDoc(
        "tls",
        "loopback",
        "true or false",
        "false",
        "encrypt also what goes to and from this host itself",
        True,
    ),
    KeyDoc(
        "peers.NAME",
        "may-send",
        'a list, as ["web*"]',
        "[]",
        "guests that it may send to this host",
    ),
    KeyDoc(
        "peers.NAME",
        "may-receive",
        'a list, as ["web*"]',
        "[]",
        "guests of this host that it may be sent",
    ),
    KeyDoc(
        "metrics",
        "listen",
        '"HOST:PORT" or a path',
        "",
        f"where GET /metrics is answered, on TCP (port {METRICS_PORT} unless given) or on a UNIX"
        " socket",
        True,
    ),
    KeyDoc(
        "launch-from-source",
        "program",
        "a path",
        "",
        "the QEMU to start; never the one that the source names",
    ),
    KeyDoc(
        "launch-from-source",
        "peers",
        'a list, as ["host-a.example"]',
        "",
        "certificates whose agents' command lines are followed",
    ),
    KeyDoc("launch-from-source", "guests", 'a list, as ["web*"]', '["*"]', "guests to do so for"),
    KeyDoc(
        "launch-from-source",
        "paths",
        "a list of patterns",
        "",
        "what the command line may name, as in"
        ' ["/dev/shm/{name}", "/images/{name}/*", "/run/qemu/{name}.qmp"]; {name} is the guest,'
        " * does not stand for /",
    ),
    KeyDoc(
        "launch-from-source",
        "interfaces",
        "a list of patterns",
        "[]",
        'tap interfaces that it may name, as in ["{name}-*"]',
    ),
    KeyDoc("launch-from-source", "user", "a user's name", "", "whom such QEMUs run as"),
    KeyDoc(
        "launch-from-source",
        "cgroup",
        "a cgroup's name",
        "",
        'as launch-cgroup, with {name} for the guest, as in "/machine.slice/{name}"',
    ),
    KeyDoc(
        "guests.NAME",
        "qmp",
        "a path",
        "",
        "the guest's QMP socket; it must be there when the guest is migrated, unless launch says"
        " how to make it",
    ),
    KeyDoc(
        "guests.NAME",
        "launch",
        "a list of words",
        "",
        "the command that starts this guest's QEMU when the guest is migrated here and nothing"
        " listens at qmp; with -S and -incoming defer (docs/launching.md)",
    ),
    KeyDoc(
        "guests.NAME",
        "launch-user",
        "a user's name",
        "",
        "whom that QEMU runs as, with the groups that the user is in; pageferryd's own user unless"
        " given",
    ),
    KeyDoc(
        "guests.NAME",
        "launch-cgroup",
        "a cgroup's name",
        "",
        'where it runs and is charged, as in "/machine.slice/web1"; made when it is not there, in a'
        " parent that is. pageferryd's own unless given. Under systemd the parent is a slice, and"
        " QEMU is in a service of its own there, in machine.slice unless given (docs/launching.md)",
    ),
)
"""All keys but those of [defaults], which are the migration parameters."""
