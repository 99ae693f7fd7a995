"""What systemd and the daemon tell each other: sd_notify(3), sockets, kept descriptors, watchdog.

The protocol is a datagram of NAME=value lines, with descriptors beside it; small libraries for it
leave the descriptors out, and systemd's own needs its headers to build.

The variables are taken out of the environment, so that no worker speaks in the daemon's name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import socket
import time
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Final

import trio

log = logging.getLogger(__name__)

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START (sd_listen_fds(3))."""

BOOTED_FOLDER: Final = "/run/systemd/system"

BARRIER_S: Final = 5.0
"""How long systemd may take to have read what it was told."""

_FD_NAME: Final = re.compile(r"[\x20-\x39\x3b-\x7e]{1,255}")


class ServiceManager:
    """The connection to systemd; without one everything does nothing."""

    def __init__(
        self,
        notify_path: str | None = None,
        watchdog_s: float | None = None,
        fds: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.watchdog_s = watchdog_s
        """How often systemd wants to hear from us at least; None: never."""
        self._path = notify_path
        self._fds = list(fds)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """Take the variables out of *environment*, and over what they say."""
        notify_path = environment.pop("NOTIFY_SOCKET", None)
        watchdog_us = environment.pop("WATCHDOG_USEC", "")
        watchdog_pid = environment.pop("WATCHDOG_PID", str(os.getpid()))
        watchdog_s = None
        if watchdog_us.isdigit() and int(watchdog_us) and watchdog_pid == str(os.getpid()):
            watchdog_s = int(watchdog_us) / 1e6
        return cls(notify_path, watchdog_s, list(_received_fds(environment)))

    @property
    def is_there(self) -> bool:
        """Whether a service manager listens to us."""
        return self._path is not None

    @property
    def starts_guests(self) -> bool:
        """Whether QEMUs that are started for guests are to be services of systemd's beside ours.

        Only root may ask for that without polkit. sd_booted(3).
        """
        return self.is_there and os.geteuid() == 0 and os.path.isdir(BOOTED_FOLDER)

    def take(self, prefix: str) -> list[tuple[str, int]]:
        """The descriptors whose names begin so; they are the caller's from now on."""
        taken = [(name, fd) for name, fd in self._fds if name.startswith(prefix)]
        self._fds = [(name, fd) for name, fd in self._fds if not name.startswith(prefix)]
        return taken

    def close_rest(self) -> None:
        """Close the descriptors that nobody took."""
        for name, fd in self._fds:
            log.warning("systemd passed a descriptor %r that nothing here is for", name)
            os.close(fd)
        self._fds = []

    def ready(self, status: str) -> None:
        """Start-up or a reload is over."""
        self._notify("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The configuration is being read again."""
        self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._notify("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self._notify(f"STATUS={status}")

    def keep(self, name: str, fd: int) -> None:
        """Let systemd hold a copy of *fd* for the next daemon, until `forget`.

        Needs FileDescriptorStoreMax= in the unit; without it systemd closes the copy at once. It is
        not to watch for the other end's closing (FDPOLL=0): the last word may still be unread.
        """
        if not _FD_NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a descriptor's name")
        self._notify("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=[fd])

    def forget(self, name: str) -> None:
        """Let systemd close its copy."""
        self._notify("FDSTOREREMOVE=1", f"FDNAME={name}")

    def barrier(self) -> None:
        """Wait until systemd has read all that it was told, at most BARRIER_S. Blocks."""
        if self._path is None:
            return
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                self._notify("BARRIER=1", fds=[writing])
            finally:
                os.close(writing)
            poll = select.poll()
            poll.register(reading, 0)  # hang-ups are always reported
            poll.poll(BARRIER_S * 1000)
        finally:
            os.close(reading)

    async def feed_watchdog(self) -> None:
        """Tell systemd twice in each of its periods that trio's loop turns. Never returns."""
        if self.watchdog_s is None:
            await trio.sleep_forever()
        while True:
            self._notify("WATCHDOG=1")
            await trio.sleep((self.watchdog_s or 0) / 2)

    def _notify(self, *lines: str, fds: Sequence[int] = ()) -> None:
        if self._path is None:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        message = "\n".join(lines).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.connect(address)
                socket.send_fds(sock, [message], list(fds))
        except OSError as error:
            log.warning("systemd cannot be told %s: %s", lines[0], error)


def _received_fds(environment: MutableMapping[str, str]) -> Iterator[tuple[str, int]]:
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "0")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return
    for number in range(int(count)):
        fd = FIRST_FD + number
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
            yield (names[number] if number < len(names) else "unknown"), fd
