"""Wrong variants of the rules, each a mistake that is easy to make. The checker must catch all.

What the comment says is what would become of the guest. The journal does not refuse phases that
may not follow here: each must be caught by what it does to the guest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.policy.ownership import RULES, DestinationEvent, Rules, SourceEvent
from pageferry.policy.ownership import DestinationStep as D
from pageferry.policy.ownership import SourceStep as S
from pageferry.testing.ownership.world import NO_JOURNAL, Physics

SP, SE = SourcePhase, SourceEvent
DP, DE = DestinationPhase, DestinationEvent

Row = Mapping[Any, Any]


def _source(step: S, row: Row, **other: Any) -> Physics:
    """The rules with this row of the source's table changed or added to."""
    return _with(source={**RULES.source, step: {**RULES.source[step], **row}}, **other)


def _destination(rows: Mapping[D, Row], **other: Any) -> Physics:
    table = dict(RULES.destination)
    for step, row in rows.items():
        table[step] = {**table[step], **row}
    return _with(destination=table, **other)


def _with(**changes: Any) -> Physics:
    rules: Rules = replace(RULES, **changes)
    return Physics(rules, phases_are_checked=False)


def _told(**meanings: SourceEvent) -> Mapping[str, SourceEvent]:
    return {**RULES.told, **meanings}


MUTANTS: Final[Mapping[str, Physics]] = {
    # Runs twice: the destination had heard it.
    "the source resumes after commit when the connection is lost": _source(
        S.SAY_COMMIT, {SE.HEARD_NOTHING: S.TAKE_BACK}
    ),
    # Runs nowhere: the destination had not heard it.
    "the source believes that a commit has arrived": _source(
        S.SAY_COMMIT, {SE.HEARD_NOTHING: S.RECORD_GIVEN_AWAY}
    ),
    "the source honours a cancel after commit": _source(S.SAY_COMMIT, {SE.GIVE_UP: S.TAKE_BACK}),
    # A destination that comes back says that it has the guest, and it is given away once more.
    "a guest is taken back before it is recorded that it is reclaimed": _source(
        S.ASK, {SE.DECLARED_GONE: S.TAKE_BACK}
    ),
    "a guest that was reclaimed is asked for again": _with(
        source_resumes_at={**RULES.source_resumes_at, SP.RECLAIMED: S.ASK}
    ),
    "the destination is said to be gone, and is not": Physics(
        word_is_true=False, phases_are_checked=False
    ),
    "the source gives up asking and resumes": _source(S.ASK, {SE.ASKED_ENOUGH: S.TAKE_BACK}),
    # After a crash its journal would say that it owns the guest.
    "the source says commit before it is recorded": _source(
        S.HAND_OVER, {SE.ARRIVED: S.SAY_COMMIT}
    ),
    "the source says commit although it could not be recorded": _source(
        S.RECORD_COMMIT, {SE.NOT_RECORDED: S.SAY_COMMIT}
    ),
    # The guest stays stopped, and nobody tries again.
    "the source records the guest as kept before it is back": _source(
        S.HAND_OVER, {SE.GIVE_UP: S.RECORD_KEPT}
    ),
    "the source records the guest as kept though QEMU is stuck": _source(
        S.TAKE_BACK, {SE.QEMU_STUCK: S.RECORD_KEPT}
    ),
    "the source leaves the guest stopped after a promise": _source(
        S.ASK, {SE.TOLD_ABORTED: S.LEFT_OPEN}
    ),
    # Commit may still be under way to a destination that has just said so.
    "loaded is taken for a promise": _with(told=_told(loaded=SE.TOLD_ABORTED)),
    # It may have run, and written to its disks.
    "lost is taken for a promise": _with(told=_told(lost=SE.TOLD_ABORTED)),
    "lost is taken for no answer": _with(told=_told(lost=SE.TOLD_UNDECIDED)),
    # QEMU may still refuse, and then nobody has it.
    "committed is taken for running": _with(told=_told(committed=SE.TOLD_RUNNING)),
    "no journal is taken for a promise": Physics(
        replace(RULES, told=_told(**{NO_JOURNAL: SE.TOLD_ABORTED})), journal_can_be_lost=True
    ),
    # A worker there may just hear Commit, which was under way.
    "a demand to give the guest up is answered before it is true": Physics(
        demand_waits_for_the_journal=False, phases_are_checked=False
    ),
    "the source recovers from commit by resuming": _with(
        source_resumes_at={**RULES.source_resumes_at, SP.COMMIT: S.TAKE_BACK}
    ),
    "the source does not recover from a switchover": _with(
        source_resumes_at={**RULES.source_resumes_at, SP.SWITCHOVER: S.RECORD_KEPT}
    ),
    # Killed right after, it would give up a guest that runs.
    "the destination runs the guest before committed is recorded": _destination(
        {
            D.AWAIT_COMMIT: {DE.HEARD_COMMIT: D.RUN},
            D.RUN: {DE.RUNS: D.RECORD_COMMITTED},
            D.RECORD_COMMITTED: {DE.RECORDED: D.RECORD_RUNNING},
        }
    ),
    "the destination runs the guest although committed could not be recorded": _destination(
        {D.RECORD_COMMITTED: {DE.NOT_RECORDED: D.RUN}}
    ),
    "the destination honours an abort while it runs the guest": _destination(
        {D.RECORD_RUNNING: {DE.GIVE_UP: D.END_QEMU}}
    ),
    "the destination says that the guest runs before it does": _destination(
        {D.RECORD_COMMITTED: {DE.RECORDED: D.RECORD_RUNNING}}
    ),
    # It can still run there, by whoever says cont.
    "the destination promises before QEMU has ended": _destination(
        {D.AWAIT_COMMIT: {DE.GIVE_UP: D.RECORD_ABORTED}}
    ),
    "the destination promises though QEMU does not end": _destination(
        {D.END_QEMU: {DE.QEMU_STUCK: D.RECORD_ABORTED}}
    ),
    # The guest may have run for a moment, or does so yet.
    "no answer to cont is taken for a refusal": _destination(
        {D.RUN: {DE.NO_ANSWER: D.RECORD_REFUSED}}
    ),
    "QEMU that ended in cont is taken for a refusal": _destination(
        {D.RUN: {DE.QEMU_GONE: D.RECORD_REFUSED}}
    ),
    "a refusal after a restart is taken for a proof": _destination(
        {D.RUN_AGAIN: {DE.REFUSED: D.RECORD_REFUSED}}
    ),
    # The source asks for ever.
    "the destination does not record that the guest is lost": _destination(
        {D.RUN_AGAIN: {DE.QEMU_GONE: D.LEFT_OPEN}, D.RUN: {DE.QEMU_GONE: D.LEFT_OPEN}}
    ),
    "the destination does not recover from loaded": _with(
        destination_resumes_at={**RULES.destination_resumes_at, DP.LOADED: D.LEFT_OPEN}
    ),
    "the destination does not recover from committed": _with(
        destination_resumes_at={**RULES.destination_resumes_at, DP.COMMITTED: D.LEFT_OPEN}
    ),
    "the destination recovers from committed by giving up": _with(
        destination_resumes_at={**RULES.destination_resumes_at, DP.COMMITTED: D.END_QEMU}
    ),
    # Its worker goes on when the daemon ends; the next daemon must not settle beside it.
    "a journal is settled while its worker lives": Physics(
        journal_is_locked=False, phases_are_checked=False
    ),
    # Started anew, for this guest or for the next one to come.
    "whatever QEMU answers at the socket is taken for the guest's": Physics(
        qemu_is_identified=False
    ),
}
