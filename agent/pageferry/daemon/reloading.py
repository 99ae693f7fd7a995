"""Reading the configuration again, at SIGHUP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from pageferry.certificates.files import CertificateFileError
from pageferry.daemon.config import Config
from pageferry.daemon.supervisor import Supervisor
from pageferry.daemon.systemd import ServiceManager
from pageferry.model.errors import PageferryError
from pageferry.net.encryption import Credentials

log = logging.getLogger(__name__)

NEEDS_RESTART: Final = {
    "control_socket": "control-socket",
    "control_socket_mode": "control-socket-mode",
    "read_only_gid": "read-only-group",
    "listen": "listen",
    "state_directory": "state-directory",
    "plaintext": "plaintext",
    "tls_directory": "directory in [tls]",
    "tls_loopback": "loopback in [tls]",
    "metrics_listen": "listen in [metrics]",
}
"""Settings that the running daemon's sockets, files and connections rest on, by their keys."""


class Reloader:
    """Puts a new configuration in the place of the old one, or leaves that in force."""

    def __init__(
        self,
        supervisor: Supervisor,
        manager: ServiceManager,
        reread: Callable[[], Config] | None,
        credentials: Sequence[Credentials] = (),
    ) -> None:
        self._supervisor = supervisor
        self._manager = manager
        self._reread = reread
        self._credentials = credentials

    async def reload(self) -> None:
        """Read and apply it. An error in it is logged, and then nothing has changed."""
        self._manager.reloading()
        self._reload_certificates()
        if self._reread is None:
            return
        try:
            config = self._reread()
        except PageferryError as error:
            log.error("the configuration stays as it was: %s; %s", error.message, error.advice)
            self._manager.ready("the new configuration has an error, the old one is in force")
            return
        old = self._supervisor.config
        in_force: dict[str, Any] = {
            attribute: getattr(old, attribute) for attribute in NEEDS_RESTART
        }
        waiting = [
            NEEDS_RESTART[attribute]
            for attribute, value in in_force.items()
            if getattr(config, attribute) != value
        ]
        self._supervisor.reconfigure(replace(config, **in_force))
        if waiting:
            log.warning("configuration read again; a restart is needed for %s", ", ".join(waiting))
        else:
            log.info("configuration read again")
        self._manager.ready(f"listening on {self._supervisor.config.listen}")

    def _reload_certificates(self) -> None:
        """Changed files are noticed anyway, at the next connection; this tells at once what is
        wrong with them, unless nobody needs any: on loopback alone, or in plaintext."""
        config = self._supervisor.config
        has_none = not any(config.tls_directory.glob("*.pem"))
        if has_none and not config.encryption.is_needed(config.listen.host):
            return
        for each in self._credentials:
            try:
                each.reload()
            except CertificateFileError as error:
                log.error("SIGHUP: %s; %s", error, error.advice)
