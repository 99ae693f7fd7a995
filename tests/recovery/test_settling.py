"""What daemons do about journals that a crash left open: real daemons, QEMUs, files and sockets."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from pageferry.migration.journal import read_journal
from pageferry.migration.recovery import Settlement, settle
from pageferry.migration.throttling import marker_path
from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.net.encryption import Encryption
from pageferry.testing.lab.monitor import LabMonitor
from tests.recovery.bench import (
    ID,
    eventually,
    held,
    phase_in,
    qemu,
)
from tests.recovery.hosts import Hosts, handed_over, until


def test_both_daemons_killed_before_the_commit_arrived(hosts: Hosts) -> None:
    handed_over(hosts)
    ours, theirs = (
        hosts.source_journal(SourcePhase.COMMIT),
        hosts.destination_journal(DestinationPhase.LOADED),
    )
    hosts.source.start()
    hosts.destination.start()
    until(theirs, "aborted")
    assert hosts.destination_qemu.process.wait(20) == 0, "it was ended in order"
    until(ours, "failed")
    assert hosts.source_qemu.status == "running"


def test_both_daemons_killed_after_the_commit_was_journalled(hosts: Hosts) -> None:
    handed_over(hosts)
    ours, theirs = (
        hosts.source_journal(SourcePhase.COMMIT),
        hosts.destination_journal(DestinationPhase.COMMITTED),
    )
    hosts.source.start()
    hosts.destination.start()
    until(theirs, "running")
    assert hosts.destination_qemu.status == "running"
    until(ours, "completed")
    assert hosts.source_qemu.status == "postmigrate"


def test_a_guest_that_was_paused_arrives_paused(hosts: Hosts) -> None:
    theirs = hosts.destination_journal(DestinationPhase.COMMITTED, **{"guest-running": False})
    hosts.destination.start()
    until(theirs, "running")
    assert hosts.destination_qemu.status == "prelaunch"


def test_the_source_asks_again_until_the_other_agent_is_there(hosts: Hosts) -> None:
    handed_over(hosts)
    ours = hosts.source_journal(SourcePhase.COMMIT)
    hosts.destination_journal(DestinationPhase.ABORTED)
    hosts.source.start()
    eventually(lambda: "cannot be settled yet" in hosts.source.log(), "it was tried")
    (told,) = hosts.source.recovered("--dry-run")
    assert not told["settled"]
    assert told["plan"] == ""
    assert "cannot be reached" in told["found"]
    assert hosts.source_qemu.status == "postmigrate", "it stays paused while nobody knows"
    hosts.destination.start()
    until(ours, "failed")
    assert hosts.source_qemu.status == "running"
    assert hosts.source.log().count("cannot be settled yet") == 1, "the same is told once"


@pytest.mark.parametrize("phase", [SourcePhase.SWITCHOVER, SourcePhase.DEVICE])
def test_a_guest_stopped_for_the_switchover_runs_again(hosts: Hosts, phase: SourcePhase) -> None:
    hosts.source_qemu.ask("cont")
    hosts.source_qemu.migrate_away(pause_before_switchover=True)
    assert hosts.source_qemu.status == "finish-migrate"
    ours = hosts.source_journal(phase)
    hosts.source.start()
    until(ours, "failed")
    assert hosts.source_qemu.status == "running"


def test_a_guest_that_was_paused_before_the_switchover_stays_paused(hosts: Hosts) -> None:
    hosts.source_qemu.ask("cont")
    hosts.source_qemu.ask("stop")
    hosts.source_qemu.migrate_away(pause_before_switchover=True)
    ours = hosts.source_journal(SourcePhase.DEVICE, **{"was-running": False})
    hosts.source.start()
    until(ours, "failed")
    # QEMU 7.2 calls it postmigrate after a cancelled migration; from either, `cont` goes on.
    assert hosts.source_qemu.status in ("paused", "postmigrate")


def test_a_guest_that_somebody_else_migrated_away_is_not_continued(hosts: Hosts) -> None:
    handed_over(hosts)  # and our own migration had not come to that
    ours = hosts.source_journal(SourcePhase.SWITCHOVER)
    hosts.source.start()
    eventually(lambda: "which ours did not come to" in hosts.source.log(), "it is told")
    assert phase_in(ours) == "switchover"
    assert hosts.source_qemu.status == "postmigrate"


@pytest.mark.parametrize("phase", [SourcePhase.COLD, SourcePhase.ROUNDS])
def test_a_guest_that_was_never_stopped_is_left_alone(hosts: Hosts, phase: SourcePhase) -> None:
    ours = hosts.source_journal(phase)
    hosts.source.start()
    until(ours, "failed")
    assert hosts.source_qemu.status == "prelaunch", "as it was, whatever that is"


def test_a_guest_that_a_throttle_may_have_stopped_keeps_its_journal_open_until_it_runs(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client has QEMU's monitor, so that nobody can tell it to go on."""
    monkeypatch.setattr("pageferry.qemu.bare.TIMEOUT_S", 0.5)
    hosts.source_qemu.ask("cont")
    hosts.source_qemu.ask("stop")
    ours = hosts.source_journal(SourcePhase.ROUNDS)
    marker = marker_path(ours.parent, ID)
    marker.touch()

    def settled() -> Settlement:
        (found,) = trio.run(settle, ours.parent, ID, Encryption())
        return found

    with contextlib.closing(LabMonitor(hosts.source_qemu.qmp)):
        told = settled()
        assert (told.settled, phase_in(ours)) == (False, "rounds")
        assert told.message.startswith("the guest is on the source, and may be stopped")
        assert marker.exists()
    eventually(lambda: settled().settled, "it is tried again")
    assert phase_in(ours) == "failed"
    assert hosts.source_qemu.status == "running"
    assert not marker.exists()


@pytest.mark.parametrize("phase", [DestinationPhase.READY, DestinationPhase.RECEIVING])
def test_a_destination_qemu_that_was_still_empty_is_left_waiting(
    hosts: Hosts, phase: DestinationPhase
) -> None:
    theirs = hosts.destination_journal(phase)
    hosts.destination.start()
    until(theirs, "aborted")
    assert not hosts.destination_qemu.is_gone()


@pytest.mark.parametrize(
    "phase", [DestinationPhase.DEVICE, DestinationPhase.LOADED, DestinationPhase.REFUSED]
)
def test_a_destination_qemu_that_must_not_run_is_ended(
    hosts: Hosts, phase: DestinationPhase
) -> None:
    theirs = hosts.destination_journal(phase)
    hosts.destination.start()
    until(theirs, "aborted")
    assert hosts.destination_qemu.process.wait(20) == 0


@pytest.mark.parametrize("is_replaced", [False, True])
def test_the_destination_qemu_ended_after_the_commit_was_journalled(
    hosts: Hosts, is_replaced: bool
) -> None:
    """The guest ended with it. Another QEMU at its socket, loaded or not, is never continued."""
    handed_over(hosts)
    ours, theirs = (
        hosts.source_journal(SourcePhase.COMMIT),
        hosts.destination_journal(DestinationPhase.COMMITTED),
    )
    hosts.destination_qemu.end()
    with ExitStack() as stack:
        if is_replaced:
            another = stack.enter_context(qemu(hosts.destination_qemu.qmp))
        hosts.destination.start()
        hosts.source.start()
        until(theirs, "lost")
        until(ours, "completed")
        if is_replaced:
            assert another.status == "prelaunch"
    assert hosts.source_qemu.status == "postmigrate", "it may have run over there"
    eventually(lambda: "its QEMU ended before it was known to run" in hosts.source.log(), "told")
    state = read_journal(ours)
    assert state is not None
    assert state.notes["lost"] is True


@pytest.mark.parametrize("is_replaced", [False, True])
def test_the_source_qemu_ended_in_the_switchover(hosts: Hosts, is_replaced: bool) -> None:
    ours = hosts.source_journal(SourcePhase.SWITCHOVER)
    hosts.source_qemu.end()
    with ExitStack() as stack:
        if is_replaced:
            another = stack.enter_context(qemu(hosts.source_qemu.qmp))
        hosts.source.start()
        until(ours, "failed")
        if is_replaced:
            assert another.status == "prelaunch", "it is another guest, or this one started anew"


def both_ready(hosts: Hosts) -> None:
    for each in (hosts.source, hosts.destination):
        each.start()
        each.wait_ready()


def test_a_source_that_settles_has_the_destination_settle_too(hosts: Hosts) -> None:
    """It asks for its guest back, which the destination was not told to run."""
    handed_over(hosts)
    both_ready(hosts)
    # Neither daemon knows of them.
    theirs = hosts.destination_journal(DestinationPhase.LOADED)
    ours = hosts.source_journal(SourcePhase.COMMIT)

    done = hosts.source.recover("--dry-run", ID)
    assert done.returncode == 5
    assert "to do: ask 127.0.0.1 to give the guest up" in done.stdout
    assert (phase_in(ours), phase_in(theirs)) == ("commit", "loaded")

    done = hosts.source.recover(ID)
    assert done.returncode == 0, done.stdout
    assert (phase_in(ours), phase_in(theirs)) == ("failed", "aborted")
    assert hosts.destination_qemu.is_gone()
    assert hosts.source_qemu.status == "running"


def test_a_guest_that_the_destination_was_told_to_run_is_not_asked_for(hosts: Hosts) -> None:
    handed_over(hosts)
    both_ready(hosts)
    theirs = hosts.destination_journal(DestinationPhase.COMMITTED)
    ours = hosts.source_journal(SourcePhase.COMMIT)
    done = hosts.source.recover(ID)
    assert done.returncode == 5, done.stdout
    assert "to do: nothing yet" in done.stdout
    assert (phase_in(ours), phase_in(theirs)) == ("commit", "committed")
    assert hosts.source_qemu.status == "postmigrate"
    (told,) = hosts.destination.recovered(ID)
    assert told["phase"] == "running"
    (told,) = hosts.source.recovered(ID)
    assert told["phase"] == "completed"


def test_a_destination_without_a_journal_settles_nothing(hosts: Hosts) -> None:
    """Its state directory may have been lost, and the guest run there."""
    handed_over(hosts)
    ours = hosts.source_journal(SourcePhase.COMMIT)
    hosts.destination.start()
    hosts.destination.wait_ready()
    hosts.source.start()
    eventually(lambda: "has no journal of it" in hosts.source.log(), "it is told")
    assert phase_in(ours) == "commit"
    assert hosts.source_qemu.status == "postmigrate"
    assert hosts.source.recover(ID).returncode == 5


def test_a_damaged_journal_at_the_destination_settles_nothing(hosts: Hosts) -> None:
    handed_over(hosts)
    ours, theirs = (
        hosts.source_journal(SourcePhase.COMMIT),
        hosts.destination_journal(DestinationPhase.ABORTED),
    )
    data = bytearray(theirs.read_bytes())
    data[-30] ^= 1
    theirs.write_bytes(data)
    hosts.destination.start()
    hosts.destination.wait_ready()
    hosts.source.start()
    eventually(lambda: "says unreadable" in hosts.source.log(), "it is told")
    assert phase_in(ours) == "commit"
    assert hosts.source_qemu.status == "postmigrate"


def test_a_worker_that_lives_keeps_its_migration(hosts: Hosts) -> None:
    """As after a restart of the daemon, whose worker goes on."""
    theirs = hosts.destination_journal(DestinationPhase.LOADED)
    with held(theirs):
        hosts.destination.start()
        eventually(lambda: "still sees to it" in hosts.destination.log(), "it was tried")
        (told,) = hosts.destination.recovered(ID)
        assert (told["phase"], told["settled"]) == ("busy", False)
        assert phase_in(theirs) == "loaded"
        assert not hosts.destination_qemu.is_gone()
    until(theirs, "aborted")


def test_recover_says_what_it_found_and_will_do_before_it_does_it(hosts: Hosts) -> None:
    hosts.source_qemu.ask("cont")
    hosts.source_qemu.migrate_away(pause_before_switchover=True)
    hosts.source.start()
    hosts.source.wait_ready()
    ours = hosts.source_journal(SourcePhase.SWITCHOVER)  # the daemon does not know of it

    done = hosts.source.recover("--dry-run", ID)
    assert done.returncode == 5
    assert "found: the journal says switchover; its QEMU says finish-migrate" in done.stdout
    assert "to do: cancel QEMU's migration and let the guest run here again" in done.stdout
    assert phase_in(ours) == "switchover"
    assert hosts.source_qemu.status == "finish-migrate"

    done = hosts.source.recover(ID)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    found = next(i for i, line in enumerate(lines) if "found:" in line)
    settled = next(i for i, line in enumerate(lines) if "settled: the guest is on" in line)
    assert found < settled
    assert hosts.source_qemu.status == "running"

    done = hosts.source.recover("--json", ID)
    (told,) = json.loads(done.stdout)
    assert (done.returncode, told["settled"], told["plan"]) == (0, True, "")


def test_two_recovers_at_once_settle_once(hosts: Hosts) -> None:
    hosts.destination.start()
    hosts.destination.wait_ready()
    theirs = hosts.destination_journal(DestinationPhase.LOADED)
    told: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: told.extend(hosts.destination.recovered(ID)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert phase_in(theirs) == "aborted"
    assert sorted(each["message"] for each in told) == [
        "it was over",
        "it was over",
        "the guest will never run here",
    ]
    assert theirs.read_bytes().count(b'"aborted"') == 1


def test_a_guest_with_an_open_journal_is_not_migrated(hosts: Hosts) -> None:
    """Settled after a new migration, the old journal could let it run twice."""
    handed_over(hosts)
    hosts.source_journal(SourcePhase.COMMIT)
    hosts.source.start()
    hosts.source.wait_ready()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pageferry.cli.main", "migrate", "--json"),
            *("--socket", str(hosts.source.folder / "control.sock")),
            *("--destination-guest", "web", str(hosts.source_qemu.qmp), "127.0.0.1:1"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "not settled yet" in done.stdout
    assert f"pageferry recover {ID}" in done.stdout


def test_a_guest_that_had_come_by_a_migration_itself_is_taken_back(
    hosts: Hosts, tmp_path: Path
) -> None:
    """Its QEMU says of that one that it has completed, which is not ours."""
    saved = tmp_path / "saved"
    with contextlib.closing(LabMonitor(hosts.destination_qemu.qmp)) as monitor:
        monitor.execute("migrate", uri=f"exec:cat >{saved}")
        eventually(
            lambda: monitor.execute("query-migrate").get("status") == "completed", "it is saved"
        )
    hosts.source_qemu.end()
    with qemu(hosts.source_qemu.qmp, "-incoming", f"exec:cat {saved}") as arrived:
        eventually(lambda: arrived.ask("query-migrate").get("status") == "completed", "it is here")
        arrived.ask("cont")
        hosts.source_qemu = arrived
        ours = hosts.source_journal(SourcePhase.SWITCHOVER)
        hosts.source.start()
        until(ours, "failed")
        assert arrived.status == "running"
