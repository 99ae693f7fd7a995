"""The service of systemd's in which QEMU runs when the agent starts it: name and command. Pure.

What pageferryd starts by itself has its sandbox and its cgroup, which are made for an agent. So
systemd starts the QEMU, in a service of its own that is gone when QEMU is (systemd-run(1)).
"""

from __future__ import annotations

from typing import Final

from pageferry.model.launch import Launch

SYSTEMD_RUN: Final = "/usr/bin/systemd-run"

PREFIX: Final = "pageferry-guest-"
"""Drop-ins for all such services are those of ``pageferry-guest-.service``."""

DEFAULT_SLICE: Final = "machine.slice"
"""Where libvirt's guests are, too."""

_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.-")


class ServiceNameError(ValueError):
    """A cgroup that no service of systemd's can have; the message says why."""


def place_of(launch: Launch, guest: str) -> tuple[str, str]:
    """(slice, service) for the QEMU of *guest*: in the slice that ``launch-cgroup`` names, and
    called after its last part; after the guest where it names none. Raises ServiceNameError.
    """
    parts = launch.cgroup.strip("/").split("/")
    if parts == [""]:
        return DEFAULT_SLICE, service_of(guest)
    slices = parts[:-1]
    if not slices or slices != _lineage(slices[-1]):
        raise ServiceNameError(
            f"{launch.cgroup} is in no slice of systemd's: write as in /machine.slice/web1"
        )
    return slices[-1], service_of(parts[-1])


def service_of(name: str) -> str:
    """The service's name for a guest's, with what systemd does not take in one escaped."""
    escaped = "".join(
        chr(byte) if chr(byte) in _PLAIN else f"\\x{byte:02x}" for byte in name.encode()
    )
    return f"{PREFIX}{escaped}.service"


def _lineage(name: str) -> list[str]:
    """A slice and those that it lies in, topmost first: ``a-b.slice`` is in ``a.slice``."""
    words = name.removesuffix(".slice").split("-")
    return [f"{'-'.join(words[: count + 1])}.slice" for count in range(len(words))]


def description_of(guest: str, migration_id: str) -> str:
    """The service's description, by which it is known as the one that this migration asked for."""
    return f"QEMU of guest {guest}, started by pageferryd for migration {migration_id}"


def service_command(
    launch: Launch, guest: str, description: str, log_path: str, stop_s: float
) -> list[str]:
    """What starts it, and ends with 0 once the program runs. Raises ServiceNameError.

    *log_path*: what it prints is added there. *stop_s*: how long it has to end when asked to.
    """
    where, service = place_of(launch, guest)
    user = [] if launch.uid is None else [f"User={launch.uid}", f"Group={launch.gid}"]
    properties = [
        # Told apart from: the program cannot be run.
        "Type=exec",
        *user,
        "WorkingDirectory=/",
        f"StandardOutput=append:{log_path}",
        "StandardError=inherit",
        # While a guest arrives its worker is in this cgroup, and it goes on when QEMU has ended.
        "KillMode=process",
        # Whichever of the two is killed for want of memory, the other is not.
        "OOMPolicy=continue",
        f"TimeoutStopSec={stop_s:g}",
        # vCPU threads are throttled in a cgroup below.
        "Delegate=yes",
    ]
    return [
        *(SYSTEMD_RUN, "--quiet", "--collect", "--no-ask-password"),
        *(f"--unit={service}", f"--slice={where}"),
        f"--description={description}",
        *(f"--property={each}" for each in properties),
        "--",
        launch.command[0],
        # systemd puts variables in, also in the middle of a word.
        *(word.replace("$", "$$") for word in launch.command[1:]),
    ]
