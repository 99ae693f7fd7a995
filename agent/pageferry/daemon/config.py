"""The configuration: one TOML file, read strictly.

A key that is not known is an error, since it is most often a misspelt one whose setting would
silently not apply. Every error names the file, the line and the key, and says what would be right.
"""

from __future__ import annotations

import difflib
import grp
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pageferry.certificates.files import DEFAULT_DIRECTORY
from pageferry.control.client import DEFAULT_SOCKET
from pageferry.daemon.launches import (
    FOLLOW_KEYS,
    LAUNCH_KEYS,
    Following,
    read_following,
    read_launch,
)
from pageferry.daemon.toml_lines import line_of
from pageferry.model.errors import RefusedError
from pageferry.model.launch import Launch
from pageferry.model.parameters import KEYS as PARAMETER_KEYS
from pageferry.model.parameters import MigrationParameters
from pageferry.net.address import Address, parse_address
from pageferry.net.encryption import Encryption
from pageferry.policy.peers import PeerRule, PeerRules

DEFAULT_PATH: Final = Path("/etc/pageferry/pageferryd.toml")

DEFAULT_STATE_DIRECTORY: Final = Path("/var/lib/pageferry")

GUEST_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:+-]{0,127}")
"""What a guest may be called. A peer chooses the name, and it may become a part of a path."""

_DAEMON_KEYS: Final = (
    "control-socket",
    "control-socket-mode",
    "read-only-group",
    "listen",
    "state-directory",
    "plaintext",
    "guest-sockets",
)
_GUEST_KEYS: Final = ("qmp", *LAUNCH_KEYS)
_TLS_KEYS: Final = ("directory", "loopback")
_PEER_KEYS: Final = ("may-send", "may-receive")
_METRICS_KEYS: Final = ("listen",)

METRICS_PORT: Final = 9477
"""Where metrics are scraped unless a port is given; no other exporter's by custom."""


class ConfigError(RefusedError):
    """The configuration cannot be used. Nothing has been started."""

    kind = "configuration"

    def __init__(self, message: str, *, advice: str) -> None:
        super().__init__(message, guest_state="", advice=advice)


@dataclass(frozen=True, slots=True)
class Config:
    """What pageferryd was configured to do."""

    control_socket: Path = DEFAULT_SOCKET
    control_socket_mode: int = 0o600
    read_only_gid: int | None = None
    listen: Address = field(default_factory=lambda: Address("127.0.0.1"))
    state_directory: Path = DEFAULT_STATE_DIRECTORY
    plaintext: bool = False
    guest_sockets: str | None = None
    defaults: MigrationParameters = field(default_factory=MigrationParameters)
    guests: Mapping[str, Path] = field(default_factory=dict)
    launches: Mapping[str, Launch] = field(default_factory=dict)
    following: Following | None = None
    tls_directory: Path = DEFAULT_DIRECTORY
    tls_loopback: bool = False
    peers: PeerRules = field(default_factory=PeerRules)
    metrics_listen: Address | Path | None = None

    def launch_for(self, guest: str, names: Sequence[str]) -> Launch | None:
        """How the QEMU of *guest* is started when it comes from the holder of a certificate with
        these *names* (none: it comes without); None: it is not."""
        if guest in self.launches:
            return self.launches[guest]
        return self.following.launch_of(guest, names) if self.following is not None else None

    @property
    def encryption(self) -> Encryption:
        """Which connections are encrypted, and with what."""
        return Encryption(self.tls_directory, self.plaintext, self.tls_loopback)


def load_config(path: Path) -> Config:
    """Read the file at *path*. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}",
            advice="check the path and its permissions",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", advice="save it as UTF-8") from error
    return parse_config(text, str(path))


def parse_config(text: str, source: str) -> Config:
    """The configuration that *text* is; *source* is named in errors. Raises ConfigError."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}", advice="correct that line") from error
    return _Reader(text, source).read(values)


class _Reader:
    """Turns the parsed file into a Config, knowing where each key stands."""

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source

    def read(self, values: Mapping[str, Any]) -> Config:
        known = (
            *("daemon", "tls", "peers", "defaults", "guests", "metrics"),
            "launch-from-source",
        )
        self._check_keys((), values, known)
        daemon = self._table((), values, "daemon")
        self._check_keys(("daemon",), daemon, _DAEMON_KEYS)
        tls = self._table((), values, "tls")
        self._check_keys(("tls",), tls, _TLS_KEYS)
        base = Config()
        read_only_gid = self._group(daemon, "read-only-group")
        guests = self._table((), values, "guests")
        return Config(
            control_socket=self._path(daemon, "control-socket", base.control_socket),
            control_socket_mode=self._mode(
                daemon, 0o660 if read_only_gid is not None else base.control_socket_mode
            ),
            read_only_gid=read_only_gid,
            listen=self._listen(daemon, base.listen),
            state_directory=self._path(daemon, "state-directory", base.state_directory),
            plaintext=self._flag(("daemon", "plaintext"), daemon),
            guest_sockets=self._template(daemon),
            defaults=self._defaults(self._table((), values, "defaults")),
            guests=self._guests(guests),
            launches=self._launches(guests),
            following=self._following(self._table((), values, "launch-from-source")),
            tls_directory=self._absolute(
                ("tls", "directory"), tls.get("directory", str(base.tls_directory))
            ),
            tls_loopback=self._flag(("tls", "loopback"), tls),
            peers=self._peers(self._table((), values, "peers")),
            metrics_listen=self._metrics(self._table((), values, "metrics")),
        )

    def _error(self, path: tuple[str, ...], what: str, advice: str) -> ConfigError:
        line = line_of(self._text, path)
        where = f"{self._source}, line {line}" if line else self._source
        table, key = ".".join(path[:-1]), path[-1]
        name = f"[{table}] {key}" if table else key
        return ConfigError(f"{where}: {name}: {what}", advice=advice)

    def _check_keys(
        self, path: tuple[str, ...], values: Mapping[str, Any], known: Iterable[str]
    ) -> None:
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(key, list(known), 1)
                advice = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                raise self._error((*path, key), "there is no such key", advice)

    def _table(
        self, path: tuple[str, ...], values: Mapping[str, Any], key: str
    ) -> Mapping[str, Any]:
        table = values.get(key, {})
        if not isinstance(table, dict):
            name = ".".join((*path, key))
            raise self._error(
                (*path, key), "must be a table", f"write [{name}] on a line of its own"
            )
        return table

    def _path(self, daemon: Mapping[str, Any], key: str, default: Path) -> Path:
        if key not in daemon:
            return default
        return self._absolute(("daemon", key), daemon[key])

    def _absolute(self, path: tuple[str, ...], value: object) -> Path:
        if not isinstance(value, str) or not value.startswith("/"):
            raise self._error(path, f"{value!r} is no absolute path", "write a path from / on")
        return Path(value)

    def _flag(self, path: tuple[str, ...], table: Mapping[str, Any]) -> bool:
        value = table.get(path[-1], False)
        if not isinstance(value, bool):
            raise self._error(path, f"{value!r} is no truth value", "write true or false")
        return value

    def _group(self, daemon: Mapping[str, Any], key: str) -> int | None:
        if key not in daemon:
            return None
        value = daemon[key]
        if not isinstance(value, str):
            raise self._error(("daemon", key), f"{value!r} is no text", "write the group's name")
        try:
            return grp.getgrnam(value).gr_gid
        except KeyError:
            raise self._error(
                ("daemon", key),
                f"there is no group {value!r} on this host",
                f"make it (groupadd --system {value}), or name another",
            ) from None

    def _mode(self, daemon: Mapping[str, Any], default: int) -> int:
        key = "control-socket-mode"
        if key not in daemon:
            return default
        value = daemon[key]
        if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
            raise self._error(("daemon", key), f"{value!r} is no file mode", 'write it as "0660"')
        return int(value, 8)

    def _listen(self, daemon: Mapping[str, Any], default: Address) -> Address:
        if "listen" not in daemon:
            return default
        value = daemon["listen"]
        if not isinstance(value, str):
            raise self._error(("daemon", "listen"), f"{value!r} is no text", 'write "HOST:PORT"')
        try:
            return parse_address(value)
        except RefusedError as error:
            raise self._error(("daemon", "listen"), error.message, error.advice) from error

    def _template(self, daemon: Mapping[str, Any]) -> str | None:
        key = "guest-sockets"
        if key not in daemon:
            return None
        value = daemon[key]
        fits = isinstance(value, str) and value.startswith("/") and value.count("{name}") == 1
        if not fits or re.search(r"[{}]", value.replace("{name}", "")):
            raise self._error(
                ("daemon", key), f"{value!r} is no template", 'write as in "/run/qemu/{name}.qmp"'
            )
        return str(value)

    def _defaults(self, values: Mapping[str, Any]) -> MigrationParameters:
        self._check_keys(("defaults",), values, tuple(PARAMETER_KEYS.values()))
        parameters = MigrationParameters()
        for key, value in values.items():
            try:
                parameters = parameters.updated({key: value})
            except RefusedError as error:
                raise self._error(("defaults", key), error.message, error.advice) from error
        return parameters

    def _metrics(self, values: Mapping[str, Any]) -> Address | Path | None:
        self._check_keys(("metrics",), values, _METRICS_KEYS)
        if "listen" not in values:
            return None
        value, path = values["listen"], ("metrics", "listen")
        if not isinstance(value, str):
            raise self._error(path, f"{value!r} is no text", 'write "HOST:PORT" or a path')
        if value.startswith("/"):
            return Path(value)
        try:
            return parse_address(value, METRICS_PORT)
        except RefusedError as error:
            raise self._error(path, error.message, error.advice) from error

    def _guests(self, values: Mapping[str, Any]) -> Mapping[str, Path]:
        guests = {}
        for name in values:
            path = ("guests", name)
            if not GUEST_NAME.fullmatch(name):
                raise self._error(path, "not fit for a guest's name", "use letters, digits and _.-")
            entry = self._table(("guests",), values, name)
            self._check_keys(path, entry, _GUEST_KEYS)
            if "qmp" not in entry:
                raise self._error(path, "qmp is missing", "add the path of the guest's QMP socket")
            guests[name] = self._absolute((*path, "qmp"), entry["qmp"])
        return guests

    def _launches(self, values: Mapping[str, Any]) -> Mapping[str, Launch]:
        """Of guests that `_guests` has accepted."""
        launches = {}
        for name, entry in values.items():

            def complain(
                key: str, what: str, advice: str, table: tuple[str, ...] = ("guests", name)
            ) -> ConfigError:
                return self._error((*table, key), what, advice)

            launch = read_launch(entry, entry["qmp"], complain)
            if launch is not None:
                launches[name] = launch
        return launches

    def _following(self, values: Mapping[str, Any]) -> Following | None:
        table = ("launch-from-source",)
        self._check_keys(table, values, FOLLOW_KEYS)
        return read_following(
            values, lambda key, what, advice: self._error((*table, key), what, advice)
        )

    def _peers(self, values: Mapping[str, Any]) -> PeerRules:
        rules = []
        for name in values:
            path = ("peers", name)
            if not name or not name.isprintable():
                raise self._error(path, "not fit for a certificate's name", "write its DNS name")
            entry = self._table(("peers",), values, name)
            self._check_keys(path, entry, _PEER_KEYS)
            patterns = [self._patterns((*path, key), entry.get(key, [])) for key in _PEER_KEYS]
            rules.append(PeerRule(name, *patterns))
        return PeerRules(tuple(rules))

    def _patterns(self, path: tuple[str, ...], value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._error(path, f"{value!r} is no list of names", 'write as in ["web*"]')
        return tuple(value)
