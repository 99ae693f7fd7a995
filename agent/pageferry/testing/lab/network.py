"""Networks of the lab's own: network namespaces in which nothing else talks.

Bytes on the wire are then exactly those of what is measured, and a link can be as slow as wanted
without any other program noticing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.cleanup import LabError, lab_name, left_by_the_dead, undone_by
from pageferry.testing.lab.daemons import LOOPBACK, Network

NAMESPACES = Path("/run/netns")

INTERFACE = "pfbench"
SOURCE_ADDRESS = "10.213.0.1"
DESTINATION_ADDRESS = "10.213.0.2"
"""Any private addresses do: the namespaces reach nothing but each other."""

BURST_BYTES = 256 * 1024
"""What the shaper lets through at once: it must hold the largest segment that TCP hands down
(64 KiB), and 2 ms of 1 Gbit/s keep the rate true on a kernel whose timers are late."""

QUEUE_MS = 20
"""How long a packet may wait in the shaper before it is dropped: the buffer of a small switch."""


@dataclass(frozen=True, slots=True)
class LabNetwork:
    """A network between two hosts. `interface` is where all bytes of the destination pass."""

    network: Network
    interface: str


@contextlib.contextmanager
def loopback_network() -> Iterator[LabNetwork]:
    """One namespace with a loopback interface of its own, in which both hosts are."""
    with _namespace("loop") as name:
        _ip("-n", name, "link", "set", "lo", "up")
        prefix = _prefix(name)
        yield LabNetwork(Network(LOOPBACK, prefix, prefix), "lo")


@contextlib.contextmanager
def shaped_network(bits_per_s: int) -> Iterator[LabNetwork]:
    """Two namespaces, one for each host, and a link between them that carries this much each way.

    LabError when this kernel or container has no network namespaces, veth or tbf.
    """
    with _namespace("source") as source, _namespace("destination") as destination:
        pair = ("type", "veth", "peer", "name", INTERFACE, "netns", destination)
        _ip("link", "add", INTERFACE, "netns", source, *pair)
        for name, address in ((source, SOURCE_ADDRESS), (destination, DESTINATION_ADDRESS)):
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{address}/30", "dev", INTERFACE)
            _ip("-n", name, "link", "set", INTERFACE, "up")
            shape = ("rate", f"{bits_per_s}bit", "burst", str(BURST_BYTES))
            _run(
                *("tc", "-n", name, "qdisc", "add", "dev", INTERFACE, "root", "tbf"),
                *(*shape, "latency", f"{QUEUE_MS}ms"),
            )
        network = Network(DESTINATION_ADDRESS, _prefix(source), _prefix(destination))
        yield LabNetwork(network, INTERFACE)


def received_bytes(pid: int, interface: str) -> int:
    """What has come in at `interface` of the network that process `pid` is in."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            return int(counters.split()[0])
    raise LabError(f"process {pid} has no interface {interface}")


@contextlib.contextmanager
def _namespace(what: str) -> Iterator[str]:
    if NAMESPACES.is_dir():
        for name in os.listdir(NAMESPACES):
            if left_by_the_dead(name):
                _ip("netns", "delete", name)
    name = lab_name(what)
    with undone_by(lambda: _ip("netns", "delete", name)):
        _ip("netns", "add", name)
        yield name


def _prefix(name: str) -> tuple[str, ...]:
    # Not `ip netns exec`: it mounts a fresh /sys, in which no cgroup is to be seen.
    return ("nsenter", f"--net={NAMESPACES / name}")


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    environment = {**os.environ, "PATH": path}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=environment
        )
    except OSError as error:
        raise LabError(f"{command[0]}: {error.strerror}; install iproute2") from error
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed: {done.stderr.strip()}")
