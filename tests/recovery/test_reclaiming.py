"""A destination that never comes back: the guest is taken back by an operator's word alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pageferry.migration.journal import read_journal
from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.monitor import LabMonitor
from tests.recovery.bench import ID, eventually, phase_in
from tests.recovery.hosts import Hosts, handed_over, until

GONE = "--destination-is-gone"
WORD = "--yes-the-destination-is-fenced"


@pytest.fixture
def ours(hosts: Hosts) -> Path:
    """The source's journal after a commit whose destination is silent; its daemon runs."""
    handed_over(hosts)
    journal = hosts.source_journal(SourcePhase.COMMIT)
    hosts.source.start()
    hosts.source.wait_ready()
    return journal


@pytest.mark.parametrize("reference", [ID, "web"])
def test_the_guest_is_back_by_the_operators_word(hosts: Hosts, ours: Path, reference: str) -> None:
    done = hosts.source.recover(reference, GONE, WORD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "by your word that 127.0.0.1 is gone for good" in done.stdout
    assert "the guest may run twice" in done.stdout
    assert "the source's again by an operator's word, and runs here" in done.stdout
    assert hosts.source_qemu.status == "running"
    state = read_journal(ours)
    assert state is not None
    assert state.phase == "failed"
    assert state.notes["word"]["uid"] == os.geteuid()
    assert b'"reclaimed"' in ours.read_bytes()
    eventually(lambda: f"uid {os.geteuid()}" in hosts.source.log(), "the log says who")


def test_a_script_that_does_not_give_its_word_changes_nothing(hosts: Hosts, ours: Path) -> None:
    done = hosts.source.recover(ID, GONE)
    assert done.returncode == 3
    assert WORD in done.stderr
    assert phase_in(ours) == "commit"
    done = hosts.source.recover(ID, GONE, WORD, "--dry-run")
    assert done.returncode == 5
    assert "to do: by your word" in done.stdout
    assert phase_in(ours) == "commit"
    assert hosts.source_qemu.status == "postmigrate"
    assert hosts.source.recover(GONE, WORD).returncode == 2


def test_it_is_refused_while_the_destinations_agent_answers(hosts: Hosts, ours: Path) -> None:
    """It settles its journal by itself, and what it says then is the truth."""
    # A QEMU that is not known to have ended: nothing about it can be settled yet.
    theirs = hosts.destination_journal(DestinationPhase.LOADED)
    theirs.write_bytes(theirs.read_bytes()[:-30] + b"-" * 29 + b"\n")
    hosts.destination.start()
    hosts.destination.wait_ready()
    done = hosts.source.recover(ID, GONE, WORD)
    assert done.returncode == 5, done.stdout
    assert "to do: nothing yet" in done.stdout
    assert phase_in(ours) == "commit"
    assert hosts.source_qemu.status == "postmigrate"


def test_it_can_be_left_paused(hosts: Hosts, ours: Path) -> None:
    done = hosts.source.recover(ID, GONE, WORD, "--leave-paused", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = json.loads(done.stdout)
    assert told["settled"]
    assert "is paused here" in told["message"]
    assert phase_in(ours) == "failed"
    assert hosts.source_qemu.status == "postmigrate"


@pytest.mark.parametrize(
    ("phase", "end"),
    [(DestinationPhase.LOADED, "aborted"), (DestinationPhase.COMMITTED, "lost")],
)
def test_a_destination_that_comes_back_does_not_run_it(
    hosts: Hosts, ours: Path, phase: DestinationPhase, end: str
) -> None:
    """Its host was switched off, so its QEMU is not the one of the journal any more."""
    theirs = hosts.destination_journal(phase)
    hosts.destination_qemu.end()
    assert hosts.source.recover(ID, GONE, WORD).returncode == 0
    hosts.destination.start()
    until(theirs, end)
    assert hosts.source_qemu.status == "running"
    assert phase_in(ours) == "failed"
    assert hosts.source.recovered(ID)[0]["message"].startswith("it was over: the guest is the")


def test_a_word_that_was_recorded_is_done_after_a_crash(hosts: Hosts) -> None:
    """The destination has come back meanwhile, and says that it has the guest: that is too late."""
    handed_over(hosts)
    ours = hosts.source_journal(SourcePhase.RECLAIMED)
    hosts.destination_journal(DestinationPhase.RUNNING)
    hosts.destination.start()
    hosts.destination.wait_ready()
    hosts.source.start()
    until(ours, "failed")
    assert hosts.source_qemu.status == "running"


def test_the_word_needs_the_guests_name(hosts: Hosts, ours: Path) -> None:
    control = LabMonitor(hosts.source.folder / "control.sock")
    for arguments, why in (
        ({"migration_id": ID, "destination_is_gone": "other"}, "expects the name"),
        ({"destination_is_gone": "web"}, "needs 'migration-id'"),
        ({"migration_id": ID, "leave_paused": True}, "needs 'destination-is-gone'"),
    ):
        with pytest.raises(LabError, match=why):
            control.execute("migrate-recover", **arguments)
    control.close()
    assert phase_in(ours) == "commit"
