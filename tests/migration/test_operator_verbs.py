"""What an operator does beside migrating, with a real guest, real swap and real daemons."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry.cli.exit_codes import ExitCode
from pageferry.control.sync_client import connect
from pageferry.testing.lab.carrying import GUEST_NAME, daemons_for
from pageferry.testing.lab.daemons import LabDaemon
from pageferry.testing.lab.guests import FreestandingGuest, GuestPlan
from pageferry.testing.lab.hosts import swap_traffic
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.settled import settled_pair
from pageferry.testing.lab.swap import SwapArea
from tests.unit.test_cli_pictures import unpack_png

MIB = 1 << 20

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu, pytest.mark.slow]

Pair = tuple[FreestandingGuest, LabDaemon, LabDaemon]


@pytest.fixture(scope="module")
def pair(newest_qemu: QemuBinary, host_swap: SwapArea) -> Iterator[Pair]:
    """A guest with 96 MiB cold in swap and 16 MiB that it writes without a pause."""
    plan = GuestPlan(newest_qemu, pace=0, limit_mib=72)
    with settled_pair(plan) as guest, daemons_for(guest) as (source, destination):
        yield guest, source, destination


def test_residency_is_what_the_kernel_says(pair: Pair, tmp_path: Path) -> None:
    guest, source, _ = pair
    done = source.run_cli("residency", GUEST_NAME, "--json", "--cells", "64")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    really = guest.source.residency()
    assert abs(told["total"]["swapped-bytes"] - really.swapped_bytes) < 4 * MIB
    assert abs(told["total"]["hole-bytes"] - really.hole_bytes) < 1 * MIB
    (block,) = told["blocks"]
    assert sum(block["resident-map"]) * 4096 == block["resident-bytes"]
    assert sum(block["swapped-map"]) * 4096 == block["swapped-bytes"]
    assert len(block["resident-map"]) == 64
    picture = tmp_path / "ram.png"
    assert source.run_cli("residency", GUEST_NAME, "--output", str(picture)).returncode == 0
    assert len({pixel for row in unpack_png(picture.read_bytes()) for pixel in row}) > 3


def test_doctor_finds_this_host_fit_and_the_guest_where_it_is(pair: Pair) -> None:
    guest, source, destination = pair
    done = source.run_cli("doctor", "--to", destination.address, "--json")
    checks = json.loads(done.stdout)
    blocked = [check for check in checks if check["verdict"] == "blocked"]
    assert not blocked, blocked
    assert done.returncode == 0
    of_guest = {check["name"]: check for check in checks if check["section"] == "guest"}
    assert of_guest["configuration"]["found"] == "can be carried, as a source"
    assert guest.source.cgroup is not None
    assert "limit " in of_guest["memory cgroup"]["found"]
    swapped = guest.source.residency().swapped_bytes // MIB
    told = int(of_guest["ram"]["found"].split(" resident, ")[1].split()[0])
    assert abs(told - swapped) < 8
    assert {check["section"] for check in checks} == {
        *("kernel", "host", "tls", "guest", "destination"),
    }
    done = source.run_cli("doctor", GUEST_NAME, "--to", destination.address, "--json")
    there = [check for check in json.loads(done.stdout) if check["section"] == "destination"]
    assert [check["name"] for check in there] == ["agent", "guest", "memory", "swap", "tmpfs"]
    assert not [check for check in there if check["verdict"] == "blocked"], there
    assert there[3]["free-bytes"] > 0
    done = destination.run_cli("doctor", GUEST_NAME, "--json")
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert found["configuration"]["found"] == "can be carried, as a destination"


def test_estimate_reads_nothing_in_and_leaves_no_trace(pair: Pair) -> None:
    guest, source, _ = pair
    before, traffic = guest.source.residency(), swap_traffic()
    done = source.run_cli("estimate", GUEST_NAME, "--sample", "1", "--json")
    assert done.returncode == 0, done.stderr
    costs = json.loads(done.stdout)
    assert abs(costs["page-in-bytes"] - before.swapped_bytes) < 4 * MIB
    assert costs["transfer-bytes"] >= before.resident_bytes + before.swapped_bytes - 4 * MIB
    # It rewrites 16 MiB at least once a second, and little else.
    assert 8 * MIB < costs["dirty-bytes-per-second"] < 40 * MIB
    assert costs["converges"]
    assert guest.source.residency().swapped_bytes > before.swapped_bytes - 8 * MIB
    assert (swap_traffic() - traffic).in_bytes < 32 * MIB  # the whole host's
    smaps = Path(f"/proc/{guest.source.pid}/smaps").read_text()
    assert " uw" not in smaps
    again = source.run_cli("estimate", GUEST_NAME, "--sample", "0.2", "--json")
    assert again.returncode == 0, again.stderr


def test_parameters_set_while_it_runs_decide_how_it_ends(pair: Pair) -> None:
    guest, source, destination = pair
    # A small window makes the cold pass long enough to be met in the middle. Nothing here rests on
    # how fast the guest writes: on a busy machine it may get no processor for a whole round.
    options = ("--json", "--downtime-limit", "1", "--max-rounds", "10000", "--window", "64K")
    with subprocess.Popen(
        source.cli("migrate", GUEST_NAME, destination.address, *options),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while _status(source) != "active":
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
            changed = source.run_cli(
                "set",
                GUEST_NAME,
                "downtime-limit=2000",
                "verify=on",
                "page-in-window=128K",
                "--json",
            )
            assert changed.returncode == 0, changed.stderr
            now = json.loads(changed.stdout)
            assert (now["downtime-limit"], now["page-in-window"]) == (2000, 128 << 10)
            with connect(source.control_socket) as client:
                client.set_parameters({"page-in-window": 0}, guest=GUEST_NAME)
            refused = source.run_cli("set", GUEST_NAME, "channels=8")
            assert refused.returncode in (ExitCode.REFUSED, ExitCode.FAILED)
            out, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    last = json.loads(out.splitlines()[-1])
    assert last["status"] == "completed", last
    # They were set on the way, and are what the worker did; the window was set back at last.
    assert last["info"]["verified"] is True
    assert MIB <= last["info"]["residency"]["window-bytes"] <= 8 * MIB
    assert last["info"]["downtime"] < 5000
    assert guest.verify().bad == 0


def _status(daemon: LabDaemon) -> str:
    """The status of the guest's last migration; asked without the price of a process."""
    with connect(daemon.control_socket) as client:
        return client.query_migrate(guest=GUEST_NAME).status
