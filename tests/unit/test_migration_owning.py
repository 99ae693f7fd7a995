"""The commit and the arrival, deed by deed: real journals; a peer and a QEMU that say what they are
told to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from pageferry.kernel.identity import ProcessIdentity, boot_id, process_identity
from pageferry.migration import arrival as arrival_module
from pageferry.migration import commit as commit_module
from pageferry.migration.arrival import Arrival
from pageferry.migration.commit import commit
from pageferry.migration.job import DestinationJob, SourceJob
from pageferry.migration.journal import Journal, JournalError, read_journal
from pageferry.migration.owning import DestinationOwnership, SourceOwnership
from pageferry.model.errors import (
    MigrationFailedError,
    OutcomeUnknownError,
    PageferryError,
    PeerLostError,
    QemuError,
)
from pageferry.model.parameters import MigrationParameters
from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.policy.ownership import DestinationStep, SourceEvent, SourceStep
from pageferry.wire import messages as m

ID = "0123456789abcdef"


class Peer:
    """Hears what is said, and answers once."""

    def __init__(self, answer: m.Message | Exception | None = None) -> None:
        self.said: list[str] = []
        self._answer = answer

    async def send(self, message: m.Message) -> None:
        self.said.append(message.name)

    async def receive(self) -> m.Message:
        if self._answer is None:
            await trio.sleep_forever()
        if isinstance(self._answer, Exception):
            raise self._answer
        assert self._answer is not None
        return self._answer

    async def raise_when_failed(self) -> None:
        raise PeerLostError("it has read the last word")


class Handover:
    """Notes whether the guest was taken back."""

    def __init__(self, *, can_come_back: bool = True) -> None:
        self.taken_back = 0
        self.destination_has_it = False
        self.back = SourceEvent.QEMU_STUCK
        self._can_come_back = can_come_back

    async def take_back(self) -> str:
        self.taken_back += 1
        if self._can_come_back:
            self.back = SourceEvent.IS_BACK
        return "runs on the source" if self._can_come_back else "may be stopped"

    def destination_runs(self) -> None:
        self.destination_has_it = True


def fail_at(journal: Journal, *phases: str) -> None:
    """Let the journal refuse these phases, as a full disk does."""
    record = journal.record

    async def refusing(phase: Any, **notes: Any) -> None:
        if phase.value in phases:
            raise JournalError("No space left on device")
        await record(phase, **notes)

    journal.record = refusing  # type: ignore[method-assign]


def phase_of(journal: Journal) -> str:
    state = read_journal(journal.path)
    assert state is not None
    return state.phase


@dataclass(slots=True)
class Source:
    """A source whose guest has arrived, with everything but the commit behind it."""

    journal: Journal
    handover: Handover
    peer: Peer
    asked: list[str] = field(default_factory=list)
    ownership: SourceOwnership = field(
        default_factory=lambda: SourceOwnership(SourceStep.RECORD_COMMIT)
    )

    async def commit(self, tmp_path: Path) -> None:
        job = SourceJob(ID, "web", "/q", "host", 1, "web", tmp_path, MigrationParameters())
        await commit(
            job,
            self.journal,
            self.peer,  # type: ignore[arg-type]
            self.handover,  # type: ignore[arg-type]
            self.ownership,
        )


async def source_in(
    tmp_path: Path, answer: m.Message | Exception | None, *, can_come_back: bool = True
) -> Source:
    journal = Journal.create(tmp_path, ID, "source")
    for phase in list(SourcePhase)[: list(SourcePhase).index(SourcePhase.COMMIT)]:
        await journal.record(phase)
    return Source(journal, Handover(can_come_back=can_come_back), Peer(answer))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the destination's agent answers to each question; the last one for ever."""
    given: list[str] = []

    async def query(*_arguments: object, demand: bool) -> str:
        assert demand, "a destination that can still give the guest up is to do so"
        answer = given.pop(0) if len(given) > 1 else given[0]
        if not answer:
            raise PeerLostError("cannot be reached")
        return answer

    monkeypatch.setattr(commit_module, "query_destination", query)
    return given


async def test_running_ends_it(tmp_path: Path) -> None:
    source = await source_in(tmp_path, m.Running(status="running"))
    await source.commit(tmp_path)
    assert source.handover.destination_has_it
    assert (phase_of(source.journal), source.handover.taken_back) == ("completed", 0)
    assert source.peer.said == ["commit"]


async def test_completed_that_cannot_be_journalled_does_not_bring_the_guest_back(
    tmp_path: Path,
) -> None:
    source = await source_in(tmp_path, m.Running(status="running"))
    fail_at(source.journal, "completed")
    await source.commit(tmp_path)
    assert (phase_of(source.journal), source.handover.taken_back) == ("commit", 0)


async def test_a_commit_that_cannot_be_journalled_is_not_said(tmp_path: Path) -> None:
    source = await source_in(tmp_path, m.Running(status="running"))
    fail_at(source.journal, "commit")
    with pytest.raises(MigrationFailedError, match="could not be journalled") as caught:
        await source.commit(tmp_path)
    assert caught.value.guest_state == "runs on the source"
    assert source.peer.said == []
    assert (phase_of(source.journal), source.handover.taken_back) == ("failed", 1)


@pytest.mark.parametrize("answer", [m.CommitFailed(message="disk locked"), m.Aborted()])
async def test_a_promise_brings_the_guest_back(tmp_path: Path, answer: m.Message) -> None:
    source = await source_in(tmp_path, answer)
    with pytest.raises(MigrationFailedError) as caught:
        await source.commit(tmp_path)
    assert (phase_of(source.journal), source.handover.taken_back) == ("failed", 1)
    state = read_journal(source.journal.path)
    assert state is not None
    assert state.notes["guest-state"] == "runs on the source"
    assert state.notes["reason"] == caught.value.message


async def test_a_guest_that_does_not_come_back_leaves_the_journal_open(tmp_path: Path) -> None:
    source = await source_in(tmp_path, m.Aborted(), can_come_back=False)
    with pytest.raises(MigrationFailedError) as caught:
        await source.commit(tmp_path)
    assert caught.value.guest_state == "may be stopped"
    assert phase_of(source.journal) == "commit"
    assert source.ownership.step is SourceStep.LEFT_OPEN


@pytest.mark.parametrize(
    "given", [["loaded"], ["committed"], ["refused"], ["no-journal"], ["unreadable"], [""], ["new"]]
)
async def test_nothing_but_a_final_answer_settles_it(
    tmp_path: Path, answers: list[str], given: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    answers += given
    source = await source_in(tmp_path, PeerLostError("gone"))
    began_s = trio.current_time()
    with pytest.raises(OutcomeUnknownError, match="has not said") as caught:
        await source.commit(tmp_path)
    assert 25 < trio.current_time() - began_s < 60
    assert f"pageferry recover {ID}" in caught.value.advice
    assert (phase_of(source.journal), source.handover.taken_back) == ("commit", 0)


@pytest.mark.parametrize(
    ("final", "phase", "taken_back"),
    [("running", "completed", 0), ("aborted", "failed", 1), ("lost", "completed", 0)],
)
async def test_it_asks_until_it_knows(
    tmp_path: Path, answers: list[str], final: str, phase: str, taken_back: int
) -> None:
    answers += ["", "loaded", "committed", final]
    source = await source_in(tmp_path, PeerLostError("gone"))
    failure: PageferryError | None = None
    try:
        await source.commit(tmp_path)
    except PageferryError as error:
        failure = error
    kinds = {"running": type(None), "aborted": MigrationFailedError, "lost": OutcomeUnknownError}
    assert isinstance(failure, kinds[final])
    assert (phase_of(source.journal), source.handover.taken_back) == (phase, taken_back)


async def test_silence_is_no_answer(
    tmp_path: Path, answers: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    answers.append("running")
    source = await source_in(tmp_path, None)
    began_s = trio.current_time()
    await source.commit(tmp_path)
    assert trio.current_time() - began_s >= commit_module.RUNNING_DEADLINE_S
    assert phase_of(source.journal) == "completed"


# The destination.


class Qemu:
    """Stands in for the destination's monitor and the commands on it."""

    def __init__(
        self, *, status: Any = "paused", cont: Any = "running", quits: bool = True
    ) -> None:
        self.commands: list[str] = []
        self._status, self._cont, self._quits = status, cont, quits
        self.is_alive = True

    async def guest_status(self, _monitor: object) -> str:
        return await self._result("query-status", self._status)

    async def run(self) -> str:
        return await self._result("cont", self._cont)

    async def discard(self) -> None:
        self.commands.append("quit")
        if not self._quits:
            raise QemuError("QEMU does not end")
        self.is_alive = False

    async def _result(self, command: str, result: Any) -> str:
        self.commands.append(command)
        if isinstance(result, QemuError):
            raise result
        if callable(result):
            result()
        return str(result)


def refusal() -> QemuError:
    error = QemuError("Failed to get write lock")
    error.error_class = "GenericError"
    return error


@dataclass(slots=True)
class Destination:
    journal: Journal
    peer: Peer
    arrival: Arrival
    ownership: DestinationOwnership


Make = Callable[..., Awaitable[Destination]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A destination with the guest loaded, that has just heard Commit, or not."""

    async def made(
        qemu: Qemu,
        *,
        step: DestinationStep = DestinationStep.RECORD_COMMITTED,
        upto: DestinationPhase = DestinationPhase.LOADED,
        guest_running: bool = True,
    ) -> Destination:
        monkeypatch.setattr(arrival_module, "guest_status", qemu.guest_status)
        monkeypatch.setattr(arrival_module, "DestinationHandover", lambda _monitor: qemu)

        async def ended(_identity: ProcessIdentity, _patience_s: float) -> bool:
            return not qemu.is_alive

        monkeypatch.setattr(arrival_module, "ended", ended)
        journal = Journal.create(tmp_path, ID, "destination")
        for phase in DestinationPhase:
            await journal.record(phase)
            if phase is upto:
                break
        peer, ownership = Peer(), DestinationOwnership(step)
        described = m.Describe(
            machine="pc",
            qemu_version="7.2",
            blocks=(("ram", 4096),),
            guest_running=guest_running,
            channels=1,
            verify=False,
        )
        arrival = Arrival(
            job=DestinationJob(ID, "web", "/q", tmp_path, 1, 1, "test"),
            described=described,
            journal=journal,
            monitor=None,  # type: ignore[arg-type]
            identity=ProcessIdentity(1, 1, "x"),
            peer=peer,  # type: ignore[arg-type]
            ownership=ownership,
        )
        return Destination(journal, peer, arrival, ownership)

    return made


async def test_committed_is_journalled_before_the_guest_runs(make: Make) -> None:
    qemu = Qemu()
    found: list[str] = []
    destination = await make(qemu)
    qemu._cont = lambda: found.append(phase_of(destination.journal))
    await destination.arrival.commit()
    assert found == ["committed"]
    assert phase_of(destination.journal) == "running"
    assert destination.peer.said == ["running"]


async def test_committed_that_cannot_be_journalled_runs_nothing_and_promises_nothing(
    make: Make,
) -> None:
    qemu = Qemu()
    destination = await make(qemu)
    fail_at(destination.journal, "committed")
    with pytest.raises(OutcomeUnknownError, match="could not be journalled"):
        await destination.arrival.commit()
    assert qemu.commands == []
    assert destination.peer.said == []


async def test_running_that_cannot_be_journalled_is_said_all_the_same(make: Make) -> None:
    destination = await make(Qemu())
    fail_at(destination.journal, "running")
    await destination.arrival.commit()
    assert phase_of(destination.journal) == "committed"
    assert destination.peer.said == ["running"]


async def test_a_refused_cont_is_recorded_before_qemu_ends(make: Make) -> None:
    qemu = Qemu(cont=refusal())
    destination = await make(qemu)
    with pytest.raises(MigrationFailedError, match="write lock"):
        await destination.arrival.commit()
    assert qemu.commands == ["query-status", "cont", "quit"]
    assert b'"refused"' in destination.journal.path.read_bytes()
    assert phase_of(destination.journal) == "aborted"
    assert destination.peer.said == ["commit-failed"]


async def test_qemu_that_refuses_and_does_not_end_promises_nothing(make: Make) -> None:
    destination = await make(Qemu(cont=refusal(), quits=False))
    with pytest.raises(OutcomeUnknownError):
        await destination.arrival.commit()
    assert phase_of(destination.journal) == "refused"
    assert destination.peer.said == []


async def test_cont_without_an_answer_is_no_refusal(make: Make) -> None:
    """It may run, or will in a moment."""
    destination = await make(Qemu(cont=QemuError("did not answer within 30 s")))
    with pytest.raises(OutcomeUnknownError):
        await destination.arrival.commit()
    assert phase_of(destination.journal) == "committed"
    assert destination.peer.said == []


async def test_qemu_that_ends_in_cont_may_have_run_the_guest(make: Make) -> None:
    qemu = Qemu(cont=QemuError("QEMU is gone"))
    destination = await make(qemu)
    qemu.is_alive = False
    with pytest.raises(OutcomeUnknownError):
        await destination.arrival.commit()
    assert phase_of(destination.journal) == "lost"
    assert destination.peer.said == []


async def test_qemu_that_was_gone_before_cont_never_ran_the_guest(make: Make) -> None:
    qemu = Qemu(status=QemuError("QEMU is gone"))
    destination = await make(qemu)
    qemu.is_alive = False
    with pytest.raises(MigrationFailedError):
        await destination.arrival.commit()
    assert "cont" not in qemu.commands
    assert phase_of(destination.journal) == "aborted"
    assert destination.peer.said == ["commit-failed"]


async def test_a_paused_guest_is_taken_without_cont(make: Make) -> None:
    qemu = Qemu()
    destination = await make(qemu, guest_running=False)
    await destination.arrival.commit()
    assert qemu.commands == ["query-status"]
    assert phase_of(destination.journal) == "running"


class Receiver:
    cleared = False

    def clear(self) -> None:
        self.cleared = True


async def test_giving_up_ends_qemu_before_it_promises(make: Make) -> None:
    qemu, receiver = Qemu(), Receiver()
    destination = await make(qemu, step=DestinationStep.AWAIT_COMMIT)
    discard = qemu.discard
    found: list[str] = []

    async def noting() -> None:
        found.append(phase_of(destination.journal))
        await discard()

    qemu.discard = noting  # type: ignore[method-assign]
    await destination.arrival.give_up(receiver, PeerLostError("gone"))  # type: ignore[arg-type]
    assert found == ["loaded"]
    assert phase_of(destination.journal) == "aborted"
    assert destination.peer.said == ["abort", "aborted"]
    assert not receiver.cleared


async def test_giving_up_leaves_an_empty_qemu_waiting(make: Make) -> None:
    qemu, receiver = Qemu(), Receiver()
    destination = await make(qemu, step=DestinationStep.RECEIVE, upto=DestinationPhase.RECEIVING)
    await destination.arrival.give_up(receiver, PeerLostError("gone"))  # type: ignore[arg-type]
    assert qemu.commands == []
    assert receiver.cleared
    assert phase_of(destination.journal) == "aborted"


async def test_giving_up_without_qemus_end_promises_nothing(make: Make) -> None:
    destination = await make(Qemu(quits=False), step=DestinationStep.AWAIT_COMMIT)
    await destination.arrival.give_up(Receiver(), PeerLostError("gone"))  # type: ignore[arg-type]
    assert phase_of(destination.journal) == "loaded"
    assert destination.peer.said == ["abort"]


def test_a_process_is_known_by_more_than_its_number() -> None:
    own = process_identity(1)
    assert own is not None
    assert own.is_alive
    assert ProcessIdentity.from_dict(own.as_dict()) == own
    assert not ProcessIdentity(own.pid, own.start_ticks + 1, own.boot_id).is_alive
    assert not ProcessIdentity(own.pid, own.start_ticks, "another boot").is_alive
    assert own.boot_id == boot_id()
    assert process_identity(1 << 22) is None
