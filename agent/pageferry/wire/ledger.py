"""The barrier at the end of each round, as the destination counts it.

Two versions of one page must not overtake each other on two data connections. So each round ends
with a Barrier on every channel, which counts the channel's frames of that round, and with RoundEnd
on the control connection, which counts them once more; the next round begins only when the
destination has placed all of them and said so. Counting twice finds a channel that lost or doubled
a frame, and a channel that was attached by someone else.
"""

from __future__ import annotations

from pageferry.model.errors import RemoteProtocolError
from pageferry.wire.limits import FIRST_ROUND
from pageferry.wire.messages import Barrier, Holes, Packed, Pages, RoundEnd, Zeros


class RoundLedger:
    """Counts the frames of one round after the other on ``channels`` data connections.

    Not for several threads at once: whoever counts from threads takes a lock. Every method raises
    RemoteProtocolError for what does not add up, and then has changed nothing.
    """

    def __init__(self, channels: int, first_round: int = FIRST_ROUND) -> None:
        self._round = first_round
        self._frames = [0] * channels
        self._has_barrier = [False] * channels
        self._round_end: RoundEnd | None = None

    @property
    def round(self) -> int:
        """Number of the round that is being received."""
        return self._round

    @property
    def is_complete(self) -> bool:
        """Whether every barrier and RoundEnd have come, so that the round may be acknowledged."""
        return self._round_end is not None and all(self._has_barrier)

    def frame(self, channel: int, frame: Pages | Packed | Zeros | Holes) -> None:
        """A frame has been placed whole."""
        self._check_round(channel, frame.round)
        self._frames[channel] += 1

    def barrier(self, channel: int, barrier: Barrier) -> None:
        """The round's end on one channel."""
        self._check_round(channel, barrier.round)
        if barrier.frames != self._frames[channel]:
            raise RemoteProtocolError(
                f"channel {channel}: the barrier of round {barrier.round} counts {barrier.frames}"
                f" frames, {self._frames[channel]} came"
            )
        if self._round_end is not None:
            self._check_count(self._round_end, channel)
        self._has_barrier[channel] = True

    def round_end(self, end: RoundEnd) -> None:
        """The round's end on the control connection, which may come before or after the
        barriers.
        """
        if end.round != self._round or self._round_end is not None:
            raise RemoteProtocolError(f"end of round {end.round} in round {self._round}")
        if len(end.frames_per_channel) != len(self._frames):
            raise RemoteProtocolError(
                f"the end of round {end.round} counts {len(end.frames_per_channel)} channels of"
                f" {len(self._frames)}"
            )
        for channel, has_barrier in enumerate(self._has_barrier):
            if has_barrier:
                self._check_count(end, channel)
        self._round_end = end

    def next_round(self) -> RoundEnd:
        """Close the complete round and await the next. Returns what ended it."""
        end = self._round_end
        if end is None or not self.is_complete:
            raise ValueError(f"round {self._round} is not complete")
        self._round += 1
        self._frames = [0] * len(self._frames)
        self._has_barrier = [False] * len(self._frames)
        self._round_end = None
        return end

    def _check_round(self, channel: int, round_number: int) -> None:
        if round_number != self._round:
            raise RemoteProtocolError(
                f"channel {channel}: a frame of round {round_number} in round {self._round}"
            )
        if self._has_barrier[channel]:
            raise RemoteProtocolError(
                f"channel {channel}: a frame of round {round_number} after its barrier"
            )

    def _check_count(self, end: RoundEnd, channel: int) -> None:
        said = end.frames_per_channel[channel]
        if said != self._frames[channel]:
            raise RemoteProtocolError(
                f"channel {channel}: the end of round {end.round} counts {said} frames,"
                f" {self._frames[channel]} came"
            )
