"""Links between the lab's two hosts, on which nothing else talks and whose bytes are counted.

Both hosts are in network namespaces, so bytes on the wire are exactly those of what is measured,
and a link can be as slow as wanted without any other program noticing.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.daemons import LOOPBACK, Network
from pageferry.testing.lab.networks import LabNetwork, cable

BURST_BYTES = 256 * 1024
"""What the shaper lets through at once: it must hold the largest segment that TCP hands down
(64 KiB), and 2 ms of 1 Gbit/s keep the rate true on a kernel whose timers are late."""

QUEUE_MS = 20
"""How long a packet may wait in the shaper before it is dropped: the buffer of a small switch."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link between two hosts. `interface` is where all bytes of the destination come in."""

    network: Network
    interface: str


@contextlib.contextmanager
def loopback_link() -> Iterator[Link]:
    """Both hosts in one namespace, with a loopback interface of its own. LabError without root."""
    with cable() as (end, _other):
        yield Link(Network(LOOPBACK, end.prefix, end.prefix), "lo")


@contextlib.contextmanager
def shaped_link(bits_per_s: int) -> Iterator[Link]:
    """A host in either namespace, and a cable between them that carries so much each way.

    LabError without root, veth or tbf.
    """
    with cable() as (source, destination):
        for end in (source, destination):
            slow_down(end, bits_per_s)
        network = Network(destination.address, source.prefix, destination.prefix)
        yield Link(network, destination.link)


def slow_down(end: LabNetwork, bits_per_s: int) -> None:
    """Let no more than so much a second out at this end, from now on. LabError without tbf."""
    _tc(
        *("-n", end.name, "qdisc", "add", "dev", end.link, "root", "tbf"),
        *("rate", f"{bits_per_s}bit", "burst", str(BURST_BYTES)),
        *("latency", f"{QUEUE_MS}ms"),
    )


def received_bytes(pid: int, interface: str) -> int:
    """What has come in at `interface` of the network that process `pid` is in."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            return int(counters.split()[0])
    raise LabError(f"process {pid} has no interface {interface}")


def _tc(*arguments: str) -> None:
    found = shutil.which("tc", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        raise LabError("shaping a link needs tc: install iproute2")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"tc {' '.join(arguments)}: {done.stderr.strip()}")
