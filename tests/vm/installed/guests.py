"""A guest between two QEMUs that run as libvirt has them: as a user of their own, in scopes."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pageferry.testing.lab.cgroups import LabCgroup
from pageferry.testing.lab.guests import FreestandingGuest, GuestPlan
from pageferry.testing.lab.packages import any_qemu
from pageferry.testing.lab.qemus import LabQemu
from pageferry.testing.lab.vm.debian import USER
from tests.vm.installed.units import CGROUPS, GUESTS, run

SLICE = "machine.slice"

PROFILE = "libvirt-lab"
"""The AppArmor profile that the QEMUs run under, as libvirt's have one each."""

COLD_SHARE = 0.5
"""Of the cold memory to be in swap at the start."""

RECLAIM_BYTES = 8 << 20
RECLAIM_TIMEOUT_S = 240.0


def plan() -> GuestPlan:
    """A small guest. Its QEMU's sockets are its user's alone, as is the file of its RAM."""
    scope = ("systemd-run", "--scope", "--quiet", "--collect", f"--slice={SLICE}")
    return GuestPlan(
        any_qemu(),
        ram_mib=96,
        cold_mib=64,
        hot_mib=2,
        zero_mib=2,
        pace=1,
        accelerator="tcg",
        prefix=(
            # Its processor never rests, and under TCG what is tested would hardly get one.
            *(*scope, "-p", "Delegate=yes", f"--uid={USER}", "--nice=15"),
            *("aa-exec", "-p", PROFILE, "--"),
            *("sh", "-c", 'umask 077 && exec "$0" "$@"'),
        ),
    )


@contextlib.contextmanager
def guest_pair() -> Iterator[FreestandingGuest]:
    """The guest, half of its cold memory in swap, and the QEMU that it can go to.

    The agents know the two as ``source`` and ``destination``.
    """
    run("apparmor_parser", "-r", str(Path(__file__).with_name(f"{PROFILE}.apparmor")))
    GUESTS.mkdir()
    shutil.chown(GUESTS, USER, USER)
    # The lab's serial sockets are root's, and the QEMUs connect to them.
    os.umask(0)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, GUESTS)
        guest = FreestandingGuest(plan(), GUESTS, stack)
        guest.wait_ready()
        _reclaim(guest)
        guest.start_destination()
        yield guest


def cgroup_of(qemu: LabQemu) -> LabCgroup:
    """The scope that it runs in."""
    name = Path(f"/proc/{qemu.pid}/cgroup").read_text().strip().removeprefix("0::/")
    return LabCgroup(2, CGROUPS / name)


def _reclaim(guest: FreestandingGuest) -> None:
    deadline = time.monotonic() + RECLAIM_TIMEOUT_S
    control = cgroup_of(guest.source).path / "memory.reclaim"
    while guest.cold_resident_share() > 1 - COLD_SHARE:
        assert time.monotonic() < deadline, guest.source.residency()
        # EAGAIN: less was found this time than was asked for.
        with contextlib.suppress(OSError):
            control.write_text(str(RECLAIM_BYTES))
