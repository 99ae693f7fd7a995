"""A migration that is cancelled, or loses a party, before the commit: the guest is the source's.

It runs on with the residency that it had, nothing of the tracker is left in QEMU, and the message
says what happened, where the guest is, and what to do.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from pageferry.testing.lab.carrying import GUEST_NAME
from pageferry.testing.lab.packages import QemuBinary
from tests.migration.conftest import MakePair, assert_verified, small_plan
from tests.migration.pairs import Pair, traces_in

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu]

MIB = 1024 * 1024

ENDLESS = {"downtime-limit": 1, "max-rounds": 10000}
"""With a guest that never pauses: it stays in its rounds until something happens."""


def in_rounds(info: dict[str, Any]) -> bool:
    return bool(info.get("phase") == "rounds" and info["ram"]["dirty-sync-count"] >= 3)


@pytest.fixture
def restless_pair(host_swap: object, make_pair: MakePair, newest_qemu: QemuBinary) -> Pair:
    """A guest that writes without a pause, most of its cold memory in swap."""
    return make_pair(small_plan(newest_qemu, pace=0, hot_mib=24))


def assert_back(pair: Pair, found: object, swapped_bytes: int) -> None:
    """The guest runs at the source, verified, as if nothing had been."""
    assert pair.source.status() == "running"
    assert traces_in(pair.source) == found
    swapped = pair.source.residency().swapped_bytes
    assert abs(swapped - swapped_bytes) <= 0.05 * swapped_bytes, (swapped, swapped_bytes)
    assert_verified(pair.guest)


@pytest.mark.parametrize("delay_s", [0.0, 0.25, 0.5, 0.9])
def test_cancel_at_any_time(delay_s: float, swapped_pair: Pair) -> None:
    found = traces_in(swapped_pair.source)
    swapped_bytes = swapped_pair.source.residency().swapped_bytes
    # A window this small keeps the migration in its cold pass for a while.
    migration_id = swapped_pair.start(**{"page-in-window": 65536, "channels": 1})
    time.sleep(delay_s)
    swapped_pair.control.execute("migrate-cancel", migration_id=migration_id)
    info = swapped_pair.wait_end()
    assert info["status"] == "cancelled"
    assert info["error"]["kind"] == "cancelled"
    assert_back(swapped_pair, found, swapped_bytes)
    # And the destination takes the next try.
    result = swapped_pair.migrate("--verify")
    assert result.status == 0, result.reason
    assert_verified(swapped_pair.guest)


def test_cancel_in_the_rounds_by_the_command_line(restless_pair: Pair) -> None:
    found = traces_in(restless_pair.source)
    swapped_bytes = restless_pair.source.residency().swapped_bytes
    restless_pair.start(**ENDLESS)
    restless_pair.wait_info(in_rounds)
    done = restless_pair.here.run_cli("cancel", GUEST_NAME)
    assert done.returncode == 0, done.stderr
    # The destination confirms that it has given up; waiting for that in vain would take 10 s.
    assert restless_pair.wait_end(timeout_s=8)["status"] == "cancelled"
    assert_back(restless_pair, found, swapped_bytes)
    assert restless_pair.journal_phases() == {"source": "cancelled", "destination": "aborted"}
    # Over there it is not the broken connection that is told, but why it was ended.
    (there,) = json.loads(restless_pair.there.run_cli("history", "--json").stdout)
    assert there["reason"] == "the other agent gave up: the migration was cancelled"


def kill_source_worker(pair: Pair) -> None:
    os.kill(pair.here.workers()[0], signal.SIGKILL)


def kill_destination_worker(pair: Pair) -> None:
    os.kill(pair.there.workers()[0], signal.SIGKILL)


def kill_destination_qemu(pair: Pair) -> None:
    pair.destination.process.kill()


def cancel_at_destination(pair: Pair) -> None:
    done = pair.there.run_cli("cancel", GUEST_NAME)
    assert done.returncode == 0, done.stderr


def kill_destination_daemon(pair: Pair) -> None:
    pair.there.process.kill()


LOSSES: dict[str, tuple[Callable[[Pair], None], str]] = {
    "source worker": (kill_source_worker, "killed by signal 9"),
    "destination worker": (kill_destination_worker, "connection"),
    "destination QEMU": (kill_destination_qemu, "QEMU"),
    "destination cancels": (cancel_at_destination, "cancel"),
    "destination daemon": (kill_destination_daemon, "cancel"),
}


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_a_loss_in_the_rounds_leaves_the_guest_running_here(loss: str, restless_pair: Pair) -> None:
    strike, word = LOSSES[loss]
    found = traces_in(restless_pair.source)
    swapped_bytes = restless_pair.source.residency().swapped_bytes
    restless_pair.start(**ENDLESS)
    restless_pair.wait_info(in_rounds)
    strike(restless_pair)
    info = restless_pair.wait_end()
    assert info["status"] == "failed", info
    assert word in info["error"]["message"], info["error"]
    assert "source" in info["error"]["guest-state"], info["error"]
    assert_back(restless_pair, found, swapped_bytes)


def test_a_daemon_that_is_killed_leaves_the_guest_running(restless_pair: Pair) -> None:
    found = traces_in(restless_pair.source)
    swapped_bytes = restless_pair.source.residency().swapped_bytes
    restless_pair.start(**ENDLESS)
    restless_pair.wait_info(in_rounds)
    workers = restless_pair.here.workers()
    restless_pair.here.process.kill()
    restless_pair.here.process.wait()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert restless_pair.journal_phases()["source"] == "cancelled"
    assert_back(restless_pair, found, swapped_bytes)


def test_the_source_qemu_that_dies_is_named(restless_pair: Pair) -> None:
    restless_pair.start(**ENDLESS)
    restless_pair.wait_info(in_rounds)
    restless_pair.source.process.kill()
    info = restless_pair.wait_end()
    assert info["status"] == "failed"
    assert "QEMU" in info["error"]["message"]
    assert restless_pair.destination.status() == "inmigrate"


def test_a_second_migration_of_the_guest_is_refused(restless_pair: Pair) -> None:
    restless_pair.start(**ENDLESS)
    restless_pair.wait_info(in_rounds)
    second = restless_pair.migrate()
    assert second.status == 3, second
    assert "in a migration already" in second.errors
    assert restless_pair.info()["status"] == "active"
    restless_pair.control.execute("migrate-cancel")
    assert restless_pair.wait_end()["status"] == "cancelled"
    assert_verified(restless_pair.guest)
