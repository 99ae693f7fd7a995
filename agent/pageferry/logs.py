"""Logging of the daemon and its workers: to the journal with fields of its own, else to stderr.

Whatever is logged within `log_context` carries the migration it is about, in the journal as the
fields PAGEFERRY_MIGRATION_ID, PAGEFERRY_GUEST and PAGEFERRY_ROLE, so that

    journalctl PAGEFERRY_MIGRATION_ID=…

shows both the daemon's lines and the worker's. The journal's native protocol is a datagram of
NAME=value lines (systemd, docs/JOURNAL_NATIVE_PROTOCOL.md): libraries for it need systemd's headers
to build, which a few lines here do not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Final

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")

STDERR_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
"""syslog(3)'s levels; below INFO it is 7, debug."""

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_context: ContextVar[Mapping[str, str] | None] = ContextVar("pageferry_log_context", default=None)


@contextlib.contextmanager
def log_context(*, migration_id: str, guest: str, role: str) -> Iterator[None]:
    """What is logged within, also by tasks and threads started within, is about this migration."""
    fields = {
        "PAGEFERRY_MIGRATION_ID": migration_id,
        "PAGEFERRY_GUEST": guest,
        "PAGEFERRY_ROLE": role,
    }
    token = _context.set(fields)
    try:
        yield
    finally:
        _context.reset(token)


def set_up_logging(
    identifier: str, *, verbose: bool = False, journal: Path = JOURNAL_SOCKET
) -> None:
    """Log to the journal when stderr is connected to it (JOURNAL_STREAM, systemd.exec(5)), else to
    stderr. *identifier* is what journalctl -t asks for."""
    handler: logging.Handler | None = None
    if _stderr_is_journal():
        with contextlib.suppress(OSError):
            handler = JournalHandler(identifier, journal)
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(STDERR_FORMAT))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])


def _stderr_is_journal() -> bool:
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(2)
        return (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (ValueError, OSError):
        return False


class JournalHandler(logging.Handler):
    """Writes records to journald. Raises OSError when it cannot be reached."""

    def __init__(self, identifier: str, path: Path = JOURNAL_SOCKET) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._identifier = identifier
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(os.fspath(path))
        except OSError:
            self._socket.close()
            raise

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record. A journal that does not take it costs the record, nothing else."""
        try:
            message = self.format(record)
            data = b"".join(
                encode_field(name, value) for name, value in self._fields(record, message).items()
            )
            self._send(data)
        except Exception:  # noqa: BLE001 - logging must not fail whoever logs
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord, message: str) -> dict[str, str]:
        return {
            "MESSAGE": message,
            "PRIORITY": str(priority_of(record.levelno)),
            "SYSLOG_IDENTIFIER": self._identifier,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
            **(_context.get() or {}),
        }

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_as_file(data)

    def _send_as_file(self, data: bytes) -> None:
        """What is too long for a datagram goes in a sealed memfd."""
        fd = os.memfd_create("pageferry-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(data)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            socket.send_fds(self._socket, [b""], [fd])
        finally:
            os.close(fd)


def priority_of(level: int) -> int:
    """The syslog priority of a logging level."""
    return next((priority for least, priority in _PRIORITIES if level >= least), 7)


def encode_field(name: str, value: str) -> bytes:
    """One field; a value of several lines goes with its length."""
    data = value.encode(errors="replace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
