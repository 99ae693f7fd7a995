"""The order of messages on the control connection."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.model.errors import LocalProtocolError, RemoteProtocolError
from pageferry.wire import messages as m
from pageferry.wire.session import LAST_TYPES, RULES, Exchange, Role
from tests.wire.pair import (
    ABORT,
    DESCRIBE,
    DEVICE,
    DIGEST,
    HELLO,
    OPENING,
    READY,
    REPLY,
    ROUNDS,
    WHOLE,
    D,
    Pair,
    S,
    round_ack,
    round_end,
)

LOADED = [*OPENING, *ROUNDS, *DEVICE]

SAMPLES: list[m.Message] = [
    HELLO,
    REPLY,
    DESCRIBE,
    READY,
    m.Refuse("", ""),
    m.Started(),
    *(round_end(n, final=final) for n in (1, 2, 3, 4) for final in (False, True)),
    *(round_ack(n) for n in (1, 2, 3, 4)),
    m.PrepareDevice(),
    m.DeviceReady(),
    m.DeviceData(b"x"),
    m.DeviceEnd(),
    m.DeviceLoaded(),
    m.Verify("sha256"),
    DIGEST,
    m.Commit(),
    m.Running("running"),
    m.CommitFailed("no"),
    ABORT,
    m.Aborted(),
    m.Ping(1),
    m.Pong(1),
    m.Query("ab" * 8),
    m.QueryReply("loaded", ""),
    m.Barrier(1, 0),
]


def deliver_all(pair: Pair) -> None:
    for speaker in Role:
        while pair.under_way[speaker]:
            pair.arrive(speaker)


def ownership(pair: Pair) -> tuple[bool, bool]:
    """Of the source: (may resume, outcome unknown)."""
    return pair.sides[S].source_may_resume, pair.sides[S].outcome_unknown


def state_of(exchange: Exchange) -> dict[str, Any]:
    return copy.deepcopy(vars(exchange))


def test_every_control_message_has_a_rule() -> None:
    assert set(RULES) == m.CONTROL_TYPES


def test_whole_migration() -> None:
    pair = Pair(WHOLE)
    assert all(side.is_over for side in pair.sides.values())
    assert not pair.sides[S].outcome_unknown
    assert not pair.sides[S].source_may_resume


def test_paused_prepare_and_verify_and_extra_final_round() -> None:
    Pair(
        [
            *LOADED,
            (S, round_end(4, final=True)),
            (D, round_ack(4)),
            (S, m.Verify("sha256")),
            (D, DIGEST),
            (S, m.Commit()),
            (D, m.CommitFailed("QEMU is gone")),
        ]
    )


def test_rounds_may_go_on_after_prepare_device() -> None:
    Pair(
        [*OPENING, *DEVICE[:2], (S, round_end(1)), (D, round_ack(1)), (S, round_end(2, final=True))]
    )


@pytest.mark.parametrize("length", range(len(WHOLE) + 1))
def test_whatever_is_not_allowed_raises_and_changes_nothing(length: int) -> None:
    pair = Pair(WHOLE[:length])
    allowed = 0
    for exchange in pair.sides.values():
        for sample in SAMPLES:
            before = state_of(exchange)
            if not exchange.may_send(sample):
                with pytest.raises(LocalProtocolError):
                    exchange.send(sample)
                assert state_of(exchange) == before
            else:
                allowed += 1
            twin = copy.deepcopy(exchange)
            try:
                twin.receive(sample)
            except RemoteProtocolError:
                assert state_of(twin) == before
    assert allowed or length == len(WHOLE)


@pytest.mark.parametrize("left_out", range(len(WHOLE) - 1))
def test_leaving_out_a_message_is_noticed(left_out: int) -> None:
    speaker, message = WHOLE[left_out]
    optional = isinstance(message, m.DeviceData) or (speaker, message) == (D, m.DeviceEnd())
    script = [*WHOLE[:left_out], *WHOLE[left_out + 1 :]]
    if optional:
        Pair(script)
    else:
        with pytest.raises(LocalProtocolError):
            Pair(script)


@st.composite
def conversations(draw: st.DrawFn) -> Pair:
    """Two well-behaved sides that say whatever they may, with messages under way and crossing."""
    pair = Pair(WHOLE[: draw(st.integers(0, len(WHOLE)))])
    for _ in range(draw(st.integers(0, 25))):
        speaker: Role = draw(st.sampled_from(list(Role)))
        arrives: bool = draw(st.booleans())
        if arrives and pair.under_way[speaker]:
            pair.arrive(speaker)
            continue
        possible: list[m.Message] = [
            sample for sample in SAMPLES if pair.sides[speaker].may_send(sample)
        ]
        if possible:
            pair.say(speaker, draw(st.sampled_from(possible)))
    return pair


@given(conversations())
@settings(max_examples=150, deadline=None)
def test_what_one_side_may_say_the_other_accepts_however_messages_cross(pair: Pair) -> None:
    deliver_all(pair)


@given(conversations())
@settings(max_examples=150, deadline=None)
def test_source_never_may_resume_what_the_destination_may_run(pair: Pair) -> None:
    said = pair.sides[D]._said
    source = pair.sides[S]
    assert not (source.source_may_resume and m.Running in said[D])
    if source.source_may_resume:
        # Whatever arrives and is said from here on by the destination, it is not Running,
        # unless the source itself says Commit first.
        deliver_all(pair)
        assert not pair.sides[D].may_send(m.Running("running"))


def test_destination_runs_only_after_commit() -> None:
    for length in range(len(WHOLE) - 1):
        pair = Pair(WHOLE[:length])
        assert pair.sides[D].may_send(m.Running("running")) == (length == len(WHOLE) - 1)
        assert pair.sides[S].source_may_resume
    assert Pair(WHOLE[:-1]).sides[D].may_send(m.Running("running"))


def test_commit_said_leaves_the_outcome_unknown_until_it_is_answered() -> None:
    pair = Pair(LOADED)
    assert ownership(pair) == (True, False)
    pair.say(S, m.Commit())
    assert ownership(pair) == (False, True)
    pair.arrive(S)
    pair.tell(D, m.CommitFailed("cont failed"))
    assert ownership(pair) == (True, False)


def test_source_cannot_abort_after_commit() -> None:
    pair = Pair([*LOADED, (S, m.Commit())])
    with pytest.raises(LocalProtocolError):
        pair.sides[S].send(ABORT)
    with pytest.raises(RemoteProtocolError):
        pair.sides[D].receive(ABORT)


def test_destination_cannot_abort_once_it_has_seen_commit() -> None:
    pair = Pair([*LOADED, (S, m.Commit())])
    with pytest.raises(LocalProtocolError):
        pair.sides[D].send(ABORT)


def test_destinations_abort_crosses_with_commit() -> None:
    pair = Pair(LOADED)
    pair.say(S, m.Commit())
    pair.say(D, ABORT)
    pair.arrive(S)
    pair.arrive(D)
    assert not pair.sides[S].source_may_resume
    assert not pair.sides[D].may_send(m.Running("running"))
    pair.tell(D, m.Aborted())
    assert pair.sides[S].source_may_resume


def test_source_does_not_commit_after_it_heard_abort() -> None:
    pair = Pair([*LOADED, (D, ABORT)])
    with pytest.raises(LocalProtocolError):
        pair.sides[S].send(m.Commit())


def test_aborts_cross() -> None:
    pair = Pair([*OPENING, *ROUNDS])
    pair.say(S, ABORT)
    pair.say(D, ABORT)
    pair.arrive(S)
    pair.arrive(D)
    pair.tell(D, m.Aborted())
    assert all(side.is_over for side in pair.sides.values())


@pytest.mark.parametrize("length", range(1, len(LOADED) + 1))
@pytest.mark.parametrize("who", list(Role))
def test_either_side_may_abort_at_any_time_before_commit(who: Role, length: int) -> None:
    pair = Pair([*LOADED[:length], (who, ABORT), (D, m.Aborted())])
    assert pair.sides[S].source_may_resume
    for side in pair.sides.values():
        assert not any(side.may_send(sample) for sample in SAMPLES)


def test_pumps_run_on_after_abort_until_it_is_acknowledged() -> None:
    pair = Pair([*OPENING, *DEVICE[:3], (S, ABORT)])
    pair.tell(S, m.DeviceData(b"late"))
    pair.tell(D, m.DeviceEnd())
    pair.tell(D, m.Ping(1))
    pair.tell(S, m.Pong(1))
    with pytest.raises(LocalProtocolError):
        pair.sides[S].send(round_end(1))


@pytest.mark.parametrize("last", [m.Refuse, m.Running, m.CommitFailed, m.Aborted])
def test_peer_speaks_after_its_last_message(last: type[m.Message]) -> None:
    endings: dict[type[m.Message], list[tuple[Role, m.Message]]] = {
        m.Refuse: [(S, HELLO), (D, m.Refuse("no", ""))],
        m.Running: WHOLE,
        m.CommitFailed: [*WHOLE[:-1], (D, m.CommitFailed("no"))],
        m.Aborted: [(S, HELLO), (S, ABORT), (D, m.Aborted())],
    }
    assert set(endings) == LAST_TYPES
    pair = Pair(endings[last])
    for sample in SAMPLES:
        with pytest.raises(RemoteProtocolError):
            pair.sides[S].receive(sample)


@pytest.mark.parametrize(
    ("script", "speaker", "message"),
    [
        pytest.param([], S, DESCRIBE, id="no_hello"),
        pytest.param([], D, REPLY, id="reply_to_nothing"),
        pytest.param([(S, HELLO)], S, HELLO, id="hello_twice"),
        pytest.param([(S, HELLO)], D, m.HelloReply(2, "a"), id="version_not_offered"),
        pytest.param([(S, HELLO)], S, DESCRIBE, id="describe_before_reply"),
        pytest.param([(S, HELLO)], S, m.Query("ab" * 8), id="query_after_hello"),
        pytest.param([(S, HELLO)], S, m.Ping(1), id="ping_before_reply"),
        pytest.param(OPENING[:3], D, m.Ready(bytes(32), 3), id="more_channels_than_offered"),
        pytest.param(OPENING[:4], S, round_end(1), id="round_before_started"),
        pytest.param(OPENING[:4], D, m.Refuse("", ""), id="refuse_after_ready"),
        pytest.param(OPENING, S, round_end(2), id="first_round_is_2"),
        pytest.param(OPENING, S, m.RoundEnd(1, [0], False), id="too_few_channels_counted"),
        pytest.param(OPENING, S, m.RoundEnd(1, [0, 0, 0], False), id="too_many_channels_counted"),
        pytest.param(OPENING, S, round_end(1, final=True), id="final_round_before_device_ready"),
        pytest.param([*OPENING, ROUNDS[0]], S, round_end(2), id="round_before_ack"),
        pytest.param([*OPENING, ROUNDS[0]], D, round_ack(2), id="ack_of_another_round"),
        pytest.param([*OPENING, *ROUNDS], S, round_end(2), id="round_twice"),
        pytest.param([*OPENING, *ROUNDS], S, round_end(4), id="round_left_out"),
        pytest.param([*OPENING, *ROUNDS], D, round_ack(2), id="ack_twice"),
        pytest.param(OPENING, D, round_ack(1), id="ack_of_nothing"),
        pytest.param(OPENING, S, m.DeviceData(b""), id="device_state_unasked"),
        pytest.param([*OPENING, DEVICE[0]], S, m.DeviceData(b""), id="device_state_before_ready"),
        pytest.param([*OPENING, *DEVICE[:2]], D, m.DeviceLoaded(), id="loaded_before_ram"),
        pytest.param([*OPENING, *ROUNDS, *DEVICE[:5]], D, m.DeviceLoaded(), id="loaded_before_ack"),
        pytest.param(LOADED, S, m.DeviceData(b""), id="device_state_after_its_end"),
        pytest.param(LOADED, S, m.DeviceEnd(), id="device_end_twice"),
        pytest.param(LOADED, S, round_end(4), id="round_of_a_running_guest_after_the_final"),
        pytest.param([*OPENING, *ROUNDS], S, m.Verify("x"), id="verify_while_guest_runs"),
        pytest.param([*LOADED, (S, round_end(4, final=True))], S, m.Verify("x"), id="verify_early"),
        pytest.param([*LOADED, (S, m.Verify("x"))], S, round_end(4, final=True), id="round_amid"),
        pytest.param([*LOADED, (S, m.Verify("x"))], S, m.Commit(), id="commit_before_digest"),
        pytest.param(LOADED, D, DIGEST, id="digest_unasked"),
        pytest.param(
            [*LOADED, (S, m.Verify("x"))],
            D,
            m.Digest({"other": "ab" * 32}),
            id="digest_of_another_block",
        ),
        pytest.param([*LOADED, (S, round_end(4, final=True))], S, m.Commit(), id="commit_amid"),
        pytest.param(LOADED[:-1], S, m.Commit(), id="commit_before_loaded"),
        pytest.param([*OPENING, *ROUNDS], S, m.Commit(), id="commit_in_rounds"),
        pytest.param([*LOADED, (S, ABORT)], S, m.Commit(), id="commit_after_abort"),
        pytest.param([*LOADED, (S, m.Commit())], S, m.Commit(), id="commit_twice"),
        pytest.param([*LOADED, (S, m.Commit())], S, round_end(4, final=True), id="round_later"),
        pytest.param([*LOADED, (S, m.Commit())], S, m.Verify("x"), id="verify_after_commit"),
        pytest.param(LOADED, D, m.Running("running"), id="running_without_commit"),
        pytest.param(LOADED, D, m.CommitFailed(""), id="commit_failed_without_commit"),
        pytest.param(LOADED, D, m.Aborted(), id="aborted_without_abort"),
        pytest.param([*LOADED, (D, ABORT)], D, ABORT, id="abort_twice"),
        pytest.param([*LOADED, (D, ABORT)], D, m.DeviceReady(), id="business_after_abort"),
        pytest.param(OPENING, D, m.Pong(1), id="pong_without_ping"),
        pytest.param([*OPENING, (S, m.Ping(5))], D, m.Pong(6), id="pong_of_later_ping"),
        pytest.param([*OPENING, (S, m.Ping(5))], S, m.Ping(5), id="ping_twice"),
        pytest.param([*OPENING, (S, m.Ping(5)), (D, m.Pong(5))], D, m.Pong(5), id="pong_twice"),
        pytest.param(OPENING, D, m.DeviceReady(), id="device_ready_unasked"),
        pytest.param(OPENING, D, DESCRIBE, id="destination_describes"),
        pytest.param(OPENING, S, m.Started(), id="source_starts"),
        pytest.param(LOADED, D, m.Commit(), id="destination_commits"),
        pytest.param(OPENING, S, m.Barrier(1, 0), id="barrier_on_control"),
        pytest.param([], D, m.QueryReply("loaded", ""), id="answer_to_nothing"),
        pytest.param([(S, m.Query("ab" * 8))], S, HELLO, id="hello_after_query"),
        pytest.param([(S, m.Query("ab" * 8))], S, m.Query("ab" * 8), id="query_unanswered"),
        pytest.param([(S, m.Query("ab" * 8))], D, m.Running(""), id="running_on_recovery"),
    ],
)
def test_peer_out_of_order(
    script: list[tuple[Role, m.Message]], speaker: Role, message: m.Message
) -> None:
    pair = Pair(script)
    before = {role: state_of(side) for role, side in pair.sides.items()}
    with pytest.raises(LocalProtocolError, match=message.name):
        pair.sides[speaker].send(message)
    with pytest.raises(RemoteProtocolError, match=message.name):
        pair.sides[speaker.other].receive(message)
    assert {role: state_of(side) for role, side in pair.sides.items()} == before


def test_destination_refuses_before_and_after_describe() -> None:
    Pair([(S, HELLO), (D, m.Refuse("no such guest", "configure it"))])
    Pair([*OPENING[:3], (D, m.Refuse("another machine", "use the same"))])


def test_recovery_asks_until_it_knows_and_may_demand_the_end() -> None:
    ask, tell = m.Query("ab" * 8), m.QueryReply("loaded", "")
    pair = Pair([(S, ask), (D, tell), (S, ask), (D, tell)])
    # Commit may have been said on the connection that broke.
    assert ownership(pair) == (False, True)
    pair.tell(S, ABORT)
    assert ownership(pair) == (False, True)
    pair.tell(D, m.Aborted())
    assert ownership(pair) == (True, False)


def test_refusal_to_answer_is_no_promise() -> None:
    assert ownership(Pair([(S, m.Query("ab" * 8)), (D, m.Refuse("unknown", ""))])) == (False, True)


def test_channels_are_what_the_destination_is_ready_for() -> None:
    pair = Pair([*OPENING[:3], (D, m.Ready(bytes(32), 1))])
    assert [side.channels for side in pair.sides.values()] == [1, 1]
