"""docs/examples/evacuate.py empties a host of real guests, through a failure and its own death."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pageferry.control.info import HistoryEntry
from pageferry.control.sync_client import connect
from pageferry.migration.journal import holder_of, journal_path
from pageferry.testing.lab.daemons import LabDaemon, run_daemon_pair
from pageferry.testing.lab.guests import FreestandingGuest, freestanding_guest
from pageferry.testing.lab.hosts import scratch_folder
from pageferry.testing.lab.packages import QemuBinary
from tests.migration.conftest import assert_verified, tiny_plan

pytestmark = [pytest.mark.root, pytest.mark.qemu, pytest.mark.slow]

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "evacuate.py"

GUESTS = ("web1", "web2", "db1", "db2")

PARALLEL = 2

DEADLINE_S = 120.0

POLL_S = 0.02


@dataclass(slots=True)
class Site:
    """A host with guests, one that waits for them, and the evacuation between them."""

    guests: dict[str, FreestandingGuest]
    here: LabDaemon
    there: LabDaemon
    folder: Path
    processes: list[subprocess.Popen[str]]

    @property
    def state(self) -> Path:
        return self.folder / "evacuation.json"

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Begin, or go on."""
        process = subprocess.Popen(
            [
                *(sys.executable, str(EXAMPLE), *options, "--state", str(self.state)),
                *("--socket", str(self.here.control_socket)),
                *("--to", f"{self.there.address}={self.there.control_socket}"),
                *("--parallel", str(PARALLEL), "--sample", "0.3", "--retry-delay", "0.5"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def remembered(self) -> dict[str, dict[str, Any]]:
        """What the state file says of each guest."""
        with contextlib.suppress(FileNotFoundError):
            return {each["name"]: each for each in json.loads(self.state.read_text())["guests"]}
        return {}

    def history(self) -> list[HistoryEntry]:
        """The migrations away from here that are over, oldest first."""
        with connect(self.here.control_socket) as client:
            return [entry for entry in client.history()[::-1] if entry.role == "source"]


@pytest.fixture
def site(newest_qemu: QemuBinary) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        guests = {}
        for number, name in enumerate(GUESTS, start=1):
            # Slow enough that something can happen to each of them, and not all alike.
            plan = tiny_plan(newest_qemu, seed=number, cold_mib=8 * number, hot_mib=2)
            guests[name] = stack.enter_context(freestanding_guest(plan))
        for guest in guests.values():
            guest.wait_ready()
            guest.start_destination()
        here, there = stack.enter_context(
            run_daemon_pair(
                folder,
                {name: guest.source.qmp_path for name, guest in guests.items()},
                {name: _waiting(guest) for name, guest in guests.items()},
                defaults={"max-bandwidth": 8 << 20, "downtime-limit": 2000},
            )
        )
        made = Site(guests, here, there, folder, [])
        try:
            yield made
        finally:
            for process in made.processes:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()


def _waiting(guest: FreestandingGuest) -> Path:
    assert guest.destination is not None
    return guest.destination.qmp_path


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(POLL_S)


def most_at_once(entries: list[HistoryEntry]) -> int:
    return max(
        sum(other.started_s <= entry.started_s < other.ended_s for other in entries)
        for entry in entries
    )


def test_host_is_evacuated_through_failure_and_kill(site: Site) -> None:
    first = site.start()

    def in_flight() -> list[dict[str, Any]]:
        found = site.remembered().values()
        return [each for each in found if each["state"] == "migrating"]

    wait_for(lambda: len(in_flight()) == PARALLEL, "two guests to be under way")
    # The other host fails one of them.
    victim = in_flight()[0]
    journal = journal_path(site.there.state_directory, victim["migration_id"], "destination")
    wait_for(lambda: holder_of(journal) is not None, "a worker there")
    pid = holder_of(journal)
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: bool(site.remembered()[victim["name"]]["failures"]), "the failure to be noted")
    # Then the evacuation itself is killed, with guests on their way.
    wait_for(lambda: len(in_flight()) == PARALLEL, "two guests to be under way again")
    first.kill()
    said, _ = first.communicate()
    before = site.remembered()
    assert any(each["state"] == "migrating" for each in before.values()), said

    second = site.start()
    said, _ = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 0, said
    assert "4 of 4 guests are away" in said
    assert "going on: migrating" in said

    entries = site.history()
    completed = [entry.guest for entry in entries if entry.status == "completed"]
    assert sorted(completed) == sorted(GUESTS), "each exactly once"
    failed = [entry for entry in entries if entry.status != "completed"]
    told = [(entry.guest, entry.reason) for entry in failed]
    assert [guest for guest, _reason in told] == [victim["name"]], told
    assert most_at_once(entries) == PARALLEL
    assert {each["state"] for each in site.remembered().values()} == {"completed"}
    with ThreadPoolExecutor() as pool:
        list(pool.map(assert_verified, site.guests.values()))
    for guest in site.guests.values():
        assert guest.runner() is guest.destination

    third = site.start()
    said, _ = third.communicate(timeout=DEADLINE_S)
    assert third.returncode == 0, said
    assert len(site.history()) == len(entries), "nothing is carried a second time"


def test_what_cannot_leave_is_told_and_the_rest_leaves(site: Site) -> None:
    destination = site.guests["db1"].destination
    assert destination is not None
    destination.stop()
    dry = site.start("--dry-run")
    said, _ = dry.communicate(timeout=DEADLINE_S)
    assert dry.returncode == 0, said
    order = re.findall(r"(?m)^(\w+) +waiting", said)
    assert order == list(GUESTS), "the cheapest first"
    assert not site.history()

    process = site.start("--tries", "2", "--set", "max-bandwidth=0")
    said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, said
    assert "3 of 4 guests are away" in said
    left = site.remembered()["db1"]
    assert left["state"] == "given-up"
    assert [each["kind"] for each in left["failures"]] == ["refused", "refused"]
    assert site.guests["db1"].source.status() == "running"
