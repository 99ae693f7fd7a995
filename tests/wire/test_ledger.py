"""The barrier at the end of a round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.model.errors import RemoteProtocolError
from pageferry.wire import messages as m
from pageferry.wire.ledger import RoundLedger


def frame(round_number: int = 1) -> m.Pages:
    return m.Pages(0, round_number, [0, 1], False)


def end(counts: list[int], round_number: int = 1) -> m.RoundEnd:
    return m.RoundEnd(round_number, counts, False)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.data())
def test_round_is_complete_exactly_when_all_has_come(
    counts: list[int], data: st.DataObject
) -> None:
    ledger = RoundLedger(len(counts))
    for round_number in (1, 2):
        left = [*counts]
        waiting = ["end", *(f"{channel}" for channel in range(len(counts)))]
        while waiting:
            assert not ledger.is_complete
            step = data.draw(st.sampled_from(waiting))
            if step == "end":
                ledger.round_end(end(counts, round_number))
                waiting.remove(step)
            elif left[int(step)]:
                ledger.frame(int(step), frame(round_number))
                left[int(step)] -= 1
            else:
                ledger.barrier(int(step), m.Barrier(round_number, counts[int(step)]))
                waiting.remove(step)
        assert ledger.is_complete
        assert ledger.next_round().round == round_number
    assert ledger.round == 3


def test_peer_sends_frame_of_another_round() -> None:
    with pytest.raises(RemoteProtocolError):
        RoundLedger(1).frame(0, frame(2))


def test_peer_sends_frame_after_its_barrier() -> None:
    ledger = RoundLedger(2)
    ledger.barrier(0, m.Barrier(1, 0))
    with pytest.raises(RemoteProtocolError):
        ledger.frame(0, frame())
    ledger.frame(1, frame())


def test_peer_sends_barrier_twice() -> None:
    ledger = RoundLedger(1)
    ledger.barrier(0, m.Barrier(1, 0))
    with pytest.raises(RemoteProtocolError):
        ledger.barrier(0, m.Barrier(1, 0))


@pytest.mark.parametrize("frames", [0, 2])
def test_peer_loses_or_doubles_a_frame(frames: int) -> None:
    ledger = RoundLedger(1)
    ledger.frame(0, frame())
    with pytest.raises(RemoteProtocolError):
        ledger.barrier(0, m.Barrier(1, frames))
    ledger.barrier(0, m.Barrier(1, 1))


def test_peer_counts_differently_on_the_control_connection() -> None:
    ledger = RoundLedger(2)
    ledger.barrier(0, m.Barrier(1, 0))
    with pytest.raises(RemoteProtocolError):
        ledger.round_end(end([1, 0]))
    ledger.round_end(end([0, 3]))
    with pytest.raises(RemoteProtocolError):
        ledger.barrier(1, m.Barrier(1, 0))
    assert not ledger.is_complete


@pytest.mark.parametrize("counts", [[0], [0, 0, 0]])
def test_peer_counts_other_channels(counts: list[int]) -> None:
    with pytest.raises(RemoteProtocolError):
        RoundLedger(2).round_end(end(counts))


def test_peer_ends_another_round_or_twice() -> None:
    ledger = RoundLedger(1)
    with pytest.raises(RemoteProtocolError):
        ledger.round_end(end([0], 2))
    ledger.round_end(end([0]))
    with pytest.raises(RemoteProtocolError):
        ledger.round_end(end([0]))


def test_incomplete_round_is_not_closed() -> None:
    ledger = RoundLedger(1)
    ledger.round_end(end([0]))
    with pytest.raises(ValueError, match="not complete"):
        ledger.next_round()
    assert ledger.round == 1
