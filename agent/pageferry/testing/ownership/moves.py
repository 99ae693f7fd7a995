"""All moves from a state of the world. A move is one thing that can happen next.

Each decision in a move is taken by the product's own functions (`source_after`,
`destination_after`, `told` and the tables of `Rules`); here is only what may come of each step.

What can happen beside the steps themselves, all at any time and any number of times: a worker or
settler is killed; a QEMU ends, and another is started in its place; the connection breaks, and what
is under way is lost from the end; a cancel, or any failure of the carrying, in both sides; a record
fails, and is found on disk later or not; a query or its answer is lost, late or doubled; QEMU
refuses, does not answer, or answers too late and acts all the same; the source's QEMU resumes by
itself because its migration failed.

Why a step and its effect are one move: a crash between the two is the same as a crash after both,
or before both, since the step itself is lost with the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pageferry.model.phase import DestinationPhase, SourcePhase, may_follow
from pageferry.policy.ownership import (
    DestinationEvent,
    DestinationStep,
    SourceEvent,
    SourceStep,
    destination_after,
    is_end,
    may_demand,
    may_give_up,
    source_after,
    told,
)
from pageferry.testing.ownership.world import (
    ABORT,
    COMMIT,
    D_GONE,
    D_LOADED,
    D_PENDING,
    D_RUNS,
    D_WAITS,
    LOADED,
    NEVER,
    NO_JOURNAL,
    OTHER,
    PREPARE,
    READY,
    RUNNING,
    S_COMPLETED,
    S_GONE,
    S_PENDING,
    S_RUNS,
    S_STOPPED,
    SAID,
    STATE,
    Move,
    Physics,
    World,
    WorldError,
)

_SP, _SE = SourcePhase, SourceEvent
_DP, _DE = DestinationPhase, DestinationEvent

Moves = Iterator[Move]


class Explorer:
    """All moves from a state."""

    def __init__(self, physics: Physics) -> None:
        self._physics = physics
        rules = physics.rules
        self._rules = rules
        self._gone = (S_GONE, OTHER) if physics.qemu_is_identified else (S_GONE,)
        self._source_next = {
            (step.value, event): source_after(step, event, rules).value
            for step, row in rules.source.items()
            for event in row
        }
        self._destination_next = {
            (step.value, event): destination_after(step, event, rules).value
            for step, row in rules.destination.items()
            for event in row
        }
        steps = (*SourceStep, *DestinationStep)
        self._source_gives_up = {s.value for s in SourceStep if may_give_up(s, rules)}
        if SourceStep.SAY_COMMIT.value in self._source_gives_up:
            self._source_gives_up.add(SAID)
        self._destination_gives_up = {s.value for s in DestinationStep if may_give_up(s, rules)}
        self._source_ends = {s.value for s in steps if isinstance(s, SourceStep) and is_end(s)}
        self._destination_ends = {
            s.value for s in steps if isinstance(s, DestinationStep) and is_end(s)
        }
        self._source_deeds: dict[str, Callable[[World, str], Moves]] = {
            SourceStep.CARRY.value: self._carry,
            SourceStep.HAND_OVER.value: self._hand_over,
            SourceStep.SAY_COMMIT.value: self._say_commit,
            SAID: self._hear_answer,
            SourceStep.ASK.value: self._ask,
            SourceStep.TAKE_BACK.value: self._take_back,
        }
        self._destination_deeds: dict[str, Callable[[World, str], Moves]] = {
            DestinationStep.RECEIVE.value: self._receive,
            DestinationStep.LOAD.value: self._load,
            DestinationStep.AWAIT_COMMIT.value: self._await_commit,
            DestinationStep.RUN.value: self._run,
            DestinationStep.RUN_AGAIN.value: self._run_again,
            DestinationStep.END_QEMU.value: self._end_qemu,
        }
        self._source_records = {s.value: p for s, p in rules.source_records.items()}
        self._destination_records = {s.value: p for s, p in rules.destination_records.items()}

    @property
    def may_end_nowhere(self) -> bool:
        """Whether something can be lost without which there is no end that is safe."""
        return self._physics.journal_can_be_lost

    def moves(self, world: World) -> Moves:
        """Everything that can happen next. Raises WorldError."""
        for who in ("source_worker", "source_settler"):
            step = getattr(world, who)
            if step is not None:
                yield from self._source(world, who, step)
        for who in ("destination_worker", "destination_settler"):
            step = getattr(world, who)
            if step is not None:
                yield from self._destination(world, who, step)
        yield from self._settlers(world)
        yield from self._qemus(world)
        yield from self._network(world)

    # Processes: their steps, their deaths, and who comes after them.

    def _source(self, world: World, who: str, step: str) -> Moves:
        yield Move(f"{who} killed", True, self._without(world, who))
        if step in self._source_gives_up:
            yield self._at_source(
                world, who, step, _SE.GIVE_UP, "fails or is cancelled", fault=True
            )
            if who == "source_worker":
                if not world.connected and not world.to_source:
                    yield self._at_source(world, who, step, _SE.GIVE_UP, "connection lost")
                if world.to_source and world.to_source[0] in (ABORT, NEVER):
                    heard = world._replace(to_source=world.to_source[1:])
                    yield self._at_source(heard, who, step, _SE.GIVE_UP, "hears abort")
                if world.source_qemu in (S_GONE, OTHER) or world.came_back:
                    yield self._at_source(world, who, step, _SE.GIVE_UP, "QEMU fails")
        if step in self._source_records:
            yield from self._source_record(world, who, step)
        deed = self._source_deeds.get(step)
        if deed is not None:
            yield from deed(world, who)

    def _destination(self, world: World, who: str, step: str) -> Moves:
        yield Move(f"{who} killed", True, self._without(world, who))
        if step in self._destination_gives_up:
            yield self._at_dest(world, who, step, _DE.GIVE_UP, "fails or is cancelled", fault=True)
            if who == "destination_worker":
                if not world.connected and not world.to_destination:
                    yield self._at_dest(world, who, step, _DE.GIVE_UP, "connection lost")
                if world.to_destination and world.to_destination[0] == ABORT:
                    heard = world._replace(to_destination=world.to_destination[1:])
                    yield self._at_dest(heard, who, step, _DE.GIVE_UP, "hears abort")
                if world.demand:
                    asked = world._replace(demand=False)
                    yield self._at_dest(asked, who, step, _DE.GIVE_UP, "is asked to give it up")
                if world.destination_qemu in (D_GONE, OTHER):
                    yield self._at_dest(world, who, step, _DE.GIVE_UP, "QEMU is gone")
        if step in self._destination_records:
            yield from self._destination_record(world, who, step)
        deed = self._destination_deeds.get(step)
        if deed is not None:
            yield from deed(world, who)

    def _at_source(
        self,
        world: World,
        who: str,
        step: str,
        event: SourceEvent,
        name: str,
        *,
        fault: bool = False,
    ) -> Move:
        name = f"{who} {step}: {name}"
        after = self._source_next[step if step != SAID else SourceStep.SAY_COMMIT.value, event]
        if event is _SE.GIVE_UP and who == "source_worker":
            # Said after the guest is back; to the destination it is the same whenever it comes.
            world = self._say(world, "to_destination", ABORT)
        if after in self._source_ends:
            return Move(name, fault, self._without(world, who))
        return Move(name, fault, world.changed(**{who: after}))

    def _at_dest(
        self,
        world: World,
        who: str,
        step: str,
        event: DestinationEvent,
        name: str,
        *,
        fault: bool = False,
    ) -> Move:
        name = f"{who} {step}: {name}"
        after = self._destination_next[step, event]
        if who == "destination_worker":
            if event is _DE.GIVE_UP:
                world = self._say(world, "to_source", ABORT)
            elif after == DestinationStep.AWAIT_COMMIT.value:
                world = self._say(world, "to_source", LOADED)
            elif after == DestinationStep.TAKEN.value:
                world = self._say(world, "to_source", RUNNING)
            elif after == DestinationStep.NEVER.value:
                world = self._say(world, "to_source", NEVER)
        if after in self._destination_ends:
            return Move(name, fault, self._without(world, who))
        return Move(name, fault, world.changed(**{who: after}))

    def _settlers(self, world: World) -> Moves:
        rules, locked = self._rules, self._physics.journal_is_locked
        if world.source_settler is None and not (locked and world.source_worker is not None):
            step = rules.source_resumes_at[_SP(world.source_journal)].value
            if step not in self._source_ends:
                yield Move("source_settler starts", False, world._replace(source_settler=step))
        if world.destination_settler is None and not (
            (locked and world.destination_worker is not None)
            or world.destination_journal == NO_JOURNAL
        ):
            place = rules.destination_resumes_at[_DP(world.destination_journal)].value
            if place not in self._destination_ends:
                after = world._replace(destination_settler=place)
                yield Move("destination_settler starts", False, after)

    @staticmethod
    def _without(world: World, who: str) -> World:
        """The process has ended; a worker's connection with it, but not what it had sent."""
        if who == "source_worker":
            return world._replace(source_worker=None, connected=False, to_source=())
        if who == "destination_worker":
            return world._replace(destination_worker=None, connected=False, to_destination=())
        return world.changed(**{who: None})

    @staticmethod
    def _say(world: World, queue: str, message: str) -> World:
        if not world.connected:
            return world
        return world.changed(**{queue: (*getattr(world, queue), message)})

    # Journals.

    def _source_record(self, world: World, who: str, step: str) -> Moves:
        phase = self._source_records[step]
        old = _SP(world.source_journal)
        if self._physics.phases_are_checked and not may_follow(old, phase):
            raise WorldError(f"the source journals {phase.value} after {old.value}")
        written = world._replace(source_journal=phase.value)
        yield self._at_source(written, who, step, _SE.RECORDED, "recorded")
        yield self._at_source(
            written, who, step, _SE.NOT_RECORDED, "fails, found later", fault=True
        )
        yield self._at_source(world, who, step, _SE.NOT_RECORDED, "fails", fault=True)

    def _destination_record(self, world: World, who: str, step: str) -> Moves:
        phase = self._destination_records[step]
        old = _DP(world.destination_journal)
        if self._physics.phases_are_checked and not may_follow(old, phase):
            raise WorldError(f"the destination journals {phase.value} after {old.value}")
        written = world._replace(destination_journal=phase.value)
        yield self._at_dest(written, who, step, _DE.RECORDED, "recorded")
        yield self._at_dest(written, who, step, _DE.NOT_RECORDED, "fails, found later", fault=True)
        yield self._at_dest(world, who, step, _DE.NOT_RECORDED, "fails", fault=True)

    # The source's steps.

    def _carry(self, world: World, who: str) -> Moves:
        if world.source_qemu == S_RUNS:
            step = SourceStep.CARRY.value
            begun = world._replace(source_journal=_SP.SWITCHOVER.value)
            yield self._at_source(begun, who, step, _SE.GIVE_UP, "fails, found later", fault=True)
            said = self._say(begun, "to_destination", PREPARE)
            yield self._at_source(said, who, step, _SE.STOPPING, "switchover begins")

    def _hand_over(self, world: World, who: str) -> Moves:
        queue, step = world.to_source, SourceStep.HAND_OVER.value
        if queue and queue[0] == READY and world.source_qemu == S_RUNS:
            after = world._replace(source_qemu=S_STOPPED, to_source=queue[1:])
            yield Move("the source's QEMU stops the guest", False, after)
        if world.source_qemu == S_STOPPED and world.source_journal == _SP.SWITCHOVER.value:
            after = world._replace(source_journal=_SP.DEVICE.value)
            yield self._at_source(after, who, step, _SE.GIVE_UP, "fails, found later", fault=True)
            yield Move("device state goes", False, self._say(after, "to_destination", STATE))
        if world.source_qemu == S_STOPPED and world.source_journal == _SP.DEVICE.value:
            after = world._replace(source_qemu=S_COMPLETED)
            yield Move("the source's QEMU completes", False, after)
        if queue and queue[0] == LOADED and world.source_qemu == S_COMPLETED:
            heard = world._replace(to_source=queue[1:])
            yield self._at_source(heard, who, step, _SE.ARRIVED, "all is there")

    def _say_commit(self, world: World, who: str) -> Moves:
        said = self._say(world, "to_destination", COMMIT)
        yield Move("commit is said", False, said.changed(**{who: SAID}))

    def _hear_answer(self, world: World, who: str) -> Moves:
        queue = world.to_source
        if queue:
            heard = world._replace(to_source=queue[1:])
            events = {RUNNING: _SE.HEARD_RUNNING, NEVER: _SE.HEARD_NEVER, ABORT: _SE.HEARD_NOTHING}
            event = events.get(queue[0])
            if event is None:
                yield Move(f"{queue[0]} means nothing any more", False, heard)
            else:
                yield self._at_source(heard, who, SAID, event, f"hears {queue[0]}")
        lost = not world.connected and not queue
        yield self._at_source(world, who, SAID, _SE.HEARD_NOTHING, "hears nothing", fault=not lost)

    def _ask(self, world: World, who: str) -> Moves:
        step = SourceStep.ASK.value
        if who == "source_settler":
            yield from self._declare_gone(world, who)
        if world.answer is None:
            after = world._replace(answer=world.destination_journal)
            yield Move("the destination's agent answers", False, after)
            yield self._at_source(world, who, step, _SE.ASKED_ENOUGH, "asks no more", fault=True)
        else:
            event = told(world.answer, self._rules)
            heard = world._replace(answer=None)
            name = f"told {world.answer}"
            if event is _SE.TOLD_UNDECIDED and may_demand(world.answer, self._rules):
                heard, name = heard._replace(demand=True), f"{name}, and demands that it ends"
            yield self._at_source(heard, who, step, event, name)
            yield self._at_source(
                world, who, step, event, f"{name}, and once more later", fault=True
            )

        if world.demand and not self._physics.demand_waits_for_the_journal:
            promised = world._replace(answer=_DP.ABORTED.value, demand=False)
            yield Move("the demand is answered at once", False, promised)

    def _declare_gone(self, world: World, who: str) -> Moves:
        """The operator's word. With the host all that ran on it is gone, and what was under way to
        it; its disk is not, and it may be switched on again later.
        """
        after = world._replace(reclaimed=True)
        if self._physics.word_is_true:
            after = after._replace(
                destination_worker=None,
                destination_settler=None,
                destination_qemu=D_GONE,
                connected=False,
                to_destination=(),
                answer=None,
                demand=False,
            )
        step = SourceStep.ASK.value
        yield self._at_source(after, who, step, _SE.DECLARED_GONE, "the word is given", fault=True)

    def _take_back(self, world: World, who: str) -> Moves:
        step = SourceStep.TAKE_BACK.value
        if world.source_qemu in self._gone:
            yield self._at_source(world, who, step, _SE.QEMU_GONE, "QEMU is gone")
            return
        if world.source_qemu == OTHER:
            raise WorldError("another QEMU is told to run at the source")
        if world.source_qemu == S_RUNS:
            yield self._at_source(world, who, step, _SE.IS_BACK, "it runs")
            return
        back = world._replace(source_qemu=S_RUNS, came_back=True)
        pending = world._replace(source_qemu=S_PENDING)
        yield self._at_source(back, who, step, _SE.IS_BACK, "the guest is back")
        for after in (world, pending, back):
            yield self._at_source(after, who, step, _SE.QEMU_STUCK, "no answer", fault=True)

    # The destination's steps.

    def _receive(self, world: World, who: str) -> Moves:
        queue = world.to_destination
        if queue and queue[0] == PREPARE and world.destination_qemu == D_WAITS:
            step = DestinationStep.RECEIVE.value
            begun = world._replace(to_destination=queue[1:], destination_journal=_DP.DEVICE.value)
            yield self._at_dest(begun, who, step, _DE.GIVE_UP, "fails, found later", fault=True)
            ready = self._say(begun, "to_source", READY)
            yield self._at_dest(ready, who, step, _DE.PREPARING, "prepares QEMU")

    def _load(self, world: World, who: str) -> Moves:
        queue = world.to_destination
        if queue and queue[0] == STATE and world.destination_qemu == D_WAITS:
            loaded = world._replace(to_destination=queue[1:], destination_qemu=D_LOADED)
            step = DestinationStep.LOAD.value
            yield self._at_dest(loaded, who, step, _DE.LOADED, "QEMU has loaded")

    def _await_commit(self, world: World, who: str) -> Moves:
        queue = world.to_destination
        if queue and queue[0] == COMMIT:
            heard = world._replace(to_destination=queue[1:])
            step = DestinationStep.AWAIT_COMMIT.value
            yield self._at_dest(heard, who, step, _DE.HEARD_COMMIT, "hears commit")

    def _run(self, world: World, who: str) -> Moves:
        step = DestinationStep.RUN.value
        if world.destination_qemu in (D_GONE, OTHER):
            # A worker holds its connection to QEMU. Seen before `cont` was sent.
            yield self._at_dest(world, who, step, _DE.REFUSED, "QEMU was gone before")
            return
        yield self._at_dest(world, who, step, _DE.REFUSED, "QEMU refuses", fault=True)
        yield from self._cont(world, who, step)

    def _run_again(self, world: World, who: str) -> Moves:
        step = DestinationStep.RUN_AGAIN.value
        if world.destination_qemu in self._gone:
            yield self._at_dest(world, who, step, _DE.QEMU_GONE, "QEMU is gone")
            return
        if world.destination_qemu == D_RUNS:
            yield self._at_dest(world, who, step, _DE.RUNS, "it runs")
            return
        yield self._at_dest(world, who, step, _DE.REFUSED, "QEMU refuses", fault=True)
        yield from self._cont(world, who, step)

    def _cont(self, world: World, who: str, step: str) -> Moves:
        if world.destination_qemu in (D_WAITS, OTHER):
            raise WorldError("another QEMU is told to run at the destination, or an empty one")
        runs = world._replace(destination_qemu=D_RUNS, ran=True)
        yield self._at_dest(runs, who, step, _DE.RUNS, "the guest runs")
        for after in (world, runs, world._replace(destination_qemu=D_PENDING)):
            yield self._at_dest(after, who, step, _DE.NO_ANSWER, "no answer", fault=True)
        for after in (world, runs):
            gone = after._replace(destination_qemu=D_GONE)
            yield self._at_dest(gone, who, step, _DE.QEMU_GONE, "QEMU ends in it", fault=True)

    def _end_qemu(self, world: World, who: str) -> Moves:
        step = DestinationStep.END_QEMU.value
        if world.destination_qemu == OTHER and OTHER not in self._gone:
            raise WorldError("another QEMU is ended at the destination")
        if world.destination_qemu in self._gone:
            yield self._at_dest(world, who, step, _DE.QEMU_GONE, "QEMU is gone")
        else:
            gone = world._replace(destination_qemu=D_GONE)
            yield self._at_dest(gone, who, step, _DE.QEMU_GONE, "QEMU ends")
            for after in (world, gone):
                yield self._at_dest(after, who, step, _DE.QEMU_STUCK, "no answer", fault=True)

    # What happens by itself.

    def _qemus(self, world: World) -> Moves:
        if self._physics.journal_can_be_lost and not (
            world.destination_worker or world.destination_settler
        ):
            after = world._replace(destination_journal=NO_JOURNAL)
            yield Move("the destination's state directory is lost", True, after)
        for qemu in ("source_qemu", "destination_qemu"):
            state = getattr(world, qemu)
            if state not in (S_GONE, OTHER):
                yield Move(f"{qemu} ends", True, world.changed(**{qemu: S_GONE}))
            elif state == S_GONE:
                yield Move(f"{qemu} is started anew", True, world.changed(**{qemu: OTHER}))
        back = world._replace(source_qemu=S_RUNS, came_back=True)
        if world.source_qemu == S_STOPPED:
            yield Move("the source's QEMU fails to migrate, and resumes", True, back)
        if world.source_qemu == S_PENDING:
            yield Move("the source's QEMU resumes at last", False, back)
        if world.destination_qemu == D_PENDING:
            after = world._replace(destination_qemu=D_RUNS, ran=True)
            yield Move("the destination's QEMU runs the guest at last", False, after)

    @staticmethod
    def _network(world: World) -> Moves:
        if world.connected:
            yield Move("the connection breaks", True, world._replace(connected=False))
        else:
            for queue in ("to_destination", "to_source"):
                under_way = getattr(world, queue)
                if under_way:
                    after = world.changed(**{queue: under_way[:-1]})
                    yield Move(f"the last message {queue} is lost", True, after)
        if world.answer is not None:
            yield Move("the answer is lost", True, world._replace(answer=None))
        if world.demand:
            yield Move("the demand is lost", True, world._replace(demand=False))
