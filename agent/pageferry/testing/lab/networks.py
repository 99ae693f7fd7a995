"""Two hosts' worth of network on one: namespaces with a cable between them, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from pageferry.testing.lab.cleanup import LabError, lab_name, left_by_the_dead, undone_by

NETNS_FOLDER: Final = Path("/run/netns")
_CLONE_NEWNET: Final = 0x40000000
_ETH_P_ALL: Final = 3
_NOBODY: Final = "02:00:00:00:00:01"
"""A locally administered address that no interface of the lab has."""

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class LabNetwork:
    """One end: a network namespace with loopback and one end of the cable. ``address`` is its own
    on the cable, in a net that is for documentation (RFC 5737).
    """

    name: str
    link: str
    address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """A command that starts what follows within it. Not ``ip netns exec``, which mounts another
        /sys and hides the cgroups."""
        return ("nsenter", f"--net={NETNS_FOLDER / self.name}")


@contextlib.contextmanager
def cable() -> Iterator[tuple[LabNetwork, LabNetwork]]:
    """Two namespaces that reach each other and nobody else. Root only. LabError when they cannot
    be made."""
    _remove_leftovers()
    number = next(_numbers)
    ends = tuple(
        LabNetwork(
            lab_name(f"net-{side}"), f"pf{os.getpid()}{side}{number}"[:15], f"192.0.2.{last}"
        )
        for side, last in (("a", 1), ("b", 2))
    )
    with contextlib.ExitStack() as stack:
        for end in ends:
            _run("netns", "add", end.name)
            stack.enter_context(undone_by(partial(_run, "netns", "delete", end.name)))
        _run(
            *("link", "add", ends[0].link, "netns", ends[0].name, "type", "veth"),
            *("peer", "name", ends[1].link, "netns", ends[1].name),
        )
        for end in ends:
            _run("-n", end.name, "address", "add", f"{end.address}/24", "dev", end.link)
            _run("-n", end.name, "link", "set", end.link, "up")
            _run("-n", end.name, "link", "set", "lo", "up")
        yield ends[0], ends[1]


def lose_all(sender: LabNetwork, receiver: LabNetwork) -> None:
    """From now on nothing that *sender* sends gets there, and neither end is told: its frames go to
    a machine that does not exist. LabError."""
    _neighbour("replace", sender, receiver, *("lladdr", _NOBODY, "nud", "permanent"))


def lose_nothing(sender: LabNetwork, receiver: LabNetwork) -> None:
    """Undo `lose_all`. LabError."""
    _neighbour("delete", sender, receiver)


def _neighbour(verb: str, end: LabNetwork, other: LabNetwork, *more: str) -> None:
    _run("-n", end.name, "neighbour", verb, other.address, "dev", end.link, *more)


class Listening:
    """All that crosses the cable, as somebody in between would see it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._data = bytearray()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def heard(self) -> bytes:
        """What was heard so far, packet after packet with their headers."""
        return bytes(self._data)

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        self._socket.settimeout(0.1)
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                self._data += self._socket.recv(1 << 17)


@contextlib.contextmanager
def listening_on(network: LabNetwork) -> Iterator[Listening]:
    """Listen at one end of the cable."""
    found: list[socket.socket] = []

    def open_there() -> None:
        # setns(2) moves this thread only, and the socket stays where it was made.
        fd = os.open(NETNS_FOLDER / network.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
                return
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
            sock.bind((network.link, 0))
            found.append(sock)
        finally:
            os.close(fd)

    thread = threading.Thread(target=open_there)
    thread.start()
    thread.join()
    if not found:
        raise LabError(f"cannot listen in network namespace {network.name}: it needs root")
    listening = Listening(found[0])
    try:
        yield listening
    finally:
        listening.close()


def _remove_leftovers() -> None:
    if NETNS_FOLDER.is_dir():
        for entry in NETNS_FOLDER.iterdir():
            if left_by_the_dead(entry.name):
                _run("netns", "delete", entry.name)


def _ip() -> tuple[str, ...]:
    found = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        raise LabError("network namespaces need ip: install iproute2")
    return (found,)


def _run(*arguments: str) -> None:
    done = subprocess.run([*_ip(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
