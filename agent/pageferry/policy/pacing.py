"""How fast cold pages may be paged in while others on the host want the same disk and memory.

A rate with additive increase, as TCP has, and a decrease by as much as others suffer, down to a
tenth of what the swap device has been seen to do.

What others suffer is measured, not guessed: now and then our own reads rest for a tenth of a
second (a *pause*), and what everybody else reads from disks and swap then is held against what they
read while we work. The kernel counts all reads (``pgpgin``) and ours apart (``read_bytes`` of
/proc/PID/io), so the difference is theirs alone. A neighbour that gets through less than
three quarters of what it reads in a pause is being slowed by us, whatever the device; one that
waits for its swap from morning to night, but as fast with us as without, is not.

The kernel's pressure stall information (PSI) cannot tell this by itself: our own waits are in it,
and with several threads that wait at once they hide everybody else's. Only in a pause is it all
theirs. Memory pressure counts as far as it is more then than before the migration: that is reclaim
that we cause. The guest's own cgroup has none of our threads in it, so its pressure is read all
the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

NS_PER_S = 1_000_000_000
MIB = 1024 * 1024

OTHERS_READ_BYTES_PER_S = MIB / 2
"""What others must read to be worth pauses: 128 single page faults a second. The guest's own faults
for its working set, a handful in a whole migration, are not."""

TARGET_SLOWDOWN = 0.2
"""By how much others may be slowed. The rate is set for this, as if the slowdown were in proportion
to it."""

HIGH_SLOWDOWN, LOW_SLOWDOWN = 0.3, 0.15
"""Above the first the rate is lowered, below the second it rises; between them it stays, so that it
does not swing with what others happen to read."""

HIGH_PRESSURE, LOW_PRESSURE = 0.2, 0.08
"""The same for the share of time in which others wait for memory and did not before."""

PRESSURE_DECREASE = 0.5

LEAST_DECREASE = 0.1
"""The rate is never lowered by more in one step: a single pause may mislead."""

INCREASE_SHARE = 1 / 20
"""Of the fastest rate seen, gained in each cycle without harm, or a quarter of the present rate if
that is more: from the floor to full speed in six seconds while others read, and at once when they
do not any more."""

INCREASE = 1.25

FLOOR_SHARE = 0.1
"""Of the fastest rate seen: what is left to us whatever others suffer. A migration that stands
still helps nobody."""

LEAST_BYTES_PER_S = 1 * MIB
"""The floor before any rate has been seen."""


@dataclass(frozen=True, slots=True)
class HostReading:
    """Counters at one moment, all since some fixed time in the past. None: cannot be had here.

    ``read_bytes``: read from block devices by everybody, swap among it. ``own_read_bytes``: by this
    process. ``memory_us``: time in which some task of the host waited for memory (PSI's ``some
    total``). ``guest_us``: the same in the guest's own cgroup. ``paged_in_bytes``: by us.
    """

    time_ns: int
    read_bytes: int
    own_read_bytes: int
    memory_us: int | None
    guest_us: int | None
    paged_in_bytes: int


@dataclass(frozen=True, slots=True)
class Pace:
    """The state between two cycles. ``bytes_per_s`` None: as fast as the window lets it.

    ``usual_pressure``, ``usual_guest_pressure``: shares of time from before the migration.
    ``pauses_bytes_per_s``: what others read in the last two pauses, the later one last. In a tenth
    of a second somebody may happen to start a program; one that suffers reads in both.
    """

    bytes_per_s: float | None = None
    fastest_bytes_per_s: float = 0.0
    usual_pressure: float = 0.0
    usual_guest_pressure: float = 0.0
    pauses_bytes_per_s: tuple[float, float] = (0.0, 0.0)

    @property
    def others_at_rest_bytes_per_s(self) -> float:
        """What others read when we do not, for sure."""
        return min(self.pauses_bytes_per_s)

    @property
    def floor_bytes_per_s(self) -> float:
        """The rate that no harm gets below."""
        return max(LEAST_BYTES_PER_S, FLOOR_SHARE * self.fastest_bytes_per_s)


@dataclass(frozen=True, slots=True)
class Cycle:
    """Some time of work, and the pause after it, if there was one: a reading at either end."""

    work: tuple[HostReading, HostReading]
    pause: tuple[HostReading, HostReading] | None = None


def before_the_migration(before: HostReading, after: HostReading) -> Pace:
    """The pace to begin with, by two readings from the time before anything was paged in."""
    return Pace(
        usual_pressure=_waiting(before.memory_us, after.memory_us, _span_ns(before, after)),
        usual_guest_pressure=_waiting(before.guest_us, after.guest_us, _span_ns(before, after)),
        # One that read all the time may be starved from our first page on.
        pauses_bytes_per_s=(0.0, others_bytes_per_s(before, after)),
    )


def wants_pause(pace: Pace, before: HostReading, after: HostReading) -> bool:
    """Whether others read enough, or did lately, to find out how they fare without us."""
    most = max(others_bytes_per_s(before, after), *pace.pauses_bytes_per_s)
    return most >= OTHERS_READ_BYTES_PER_S


def others_bytes_per_s(before: HostReading, after: HostReading) -> float:
    """What everybody but this process read from block devices between two readings."""
    span_ns = _span_ns(before, after)
    if span_ns <= 0:
        return 0.0
    everybody = after.read_bytes - before.read_bytes
    own = after.own_read_bytes - before.own_read_bytes
    return max(0, everybody - own) * NS_PER_S / span_ns


def next_pace(pace: Pace, cycle: Cycle) -> Pace:
    """The pace after one more cycle. One that took no time changes nothing.

    The result is between the floor and no limit; for more harm it is never faster; without harm it
    becomes "no limit" after a bounded number of cycles.
    """
    before, after = cycle.work
    span_ns = _span_ns(before, after)
    if span_ns <= 0:
        return pace
    reached = max(0, after.paged_in_bytes - before.paged_in_bytes) * NS_PER_S / span_ns
    pace = replace(pace, fastest_bytes_per_s=max(pace.fastest_bytes_per_s, reached))
    if pace.bytes_per_s is not None:
        # The floor has risen with the fastest rate.
        pace = replace(pace, bytes_per_s=max(pace.bytes_per_s, pace.floor_bytes_per_s))
    pace = _with_pause(pace, cycle.pause)
    slowdown, pressure = _slowdown(pace, cycle), _pressure(pace, cycle)
    if slowdown > HIGH_SLOWDOWN or pressure > HIGH_PRESSURE:
        return _slower(pace, reached, slowdown, pressure)
    if pace.bytes_per_s is None or slowdown > LOW_SLOWDOWN or pressure > LOW_PRESSURE:
        return pace
    step = max(LEAST_BYTES_PER_S, pace.fastest_bytes_per_s * INCREASE_SHARE)
    rate = max(pace.bytes_per_s + step, pace.bytes_per_s * INCREASE)
    # Beyond the fastest it does not limit any more, and where nobody reads there is no need to.
    alone = max(pace.pauses_bytes_per_s) < OTHERS_READ_BYTES_PER_S
    return replace(pace, bytes_per_s=None if alone or rate > pace.fastest_bytes_per_s else rate)


def allowed_bytes_per_s(pace: Pace, max_swap_bandwidth: int, *, paced: bool) -> int:
    """What the page-in may use, in bytes per second, 0 for no limit.

    The lower of the pace (when *paced*) and the operator's limit (0: none).
    """
    limits = [max_swap_bandwidth] if max_swap_bandwidth else []
    if paced and pace.bytes_per_s is not None:
        limits.append(max(1, int(pace.bytes_per_s)))
    return min(limits, default=0)


def _with_pause(pace: Pace, pause: tuple[HostReading, HostReading] | None) -> Pace:
    if pause is None or _span_ns(*pause) <= 0:
        return pace
    pauses = (pace.pauses_bytes_per_s[1], others_bytes_per_s(*pause))
    return replace(pace, pauses_bytes_per_s=pauses)


def _slowdown(pace: Pace, cycle: Cycle) -> float:
    """By what part others read less while we work, 0 to 1."""
    at_rest = pace.others_at_rest_bytes_per_s
    if cycle.pause is None or at_rest < OTHERS_READ_BYTES_PER_S:
        return 0.0
    return min(1.0, max(0.0, 1.0 - others_bytes_per_s(*cycle.work) / at_rest))


def _pressure(pace: Pace, cycle: Cycle) -> float:
    """For what share of the time others wait for memory, or the guest does, and did not before."""
    before, after = cycle.work
    guest = _waiting(before.guest_us, after.guest_us, _span_ns(before, after))
    pressure = guest - pace.usual_guest_pressure
    if cycle.pause is not None:
        before, after = cycle.pause
        others = _waiting(before.memory_us, after.memory_us, _span_ns(before, after))
        pressure = max(pressure, others - pace.usual_pressure)
    return max(0.0, pressure)


def _slower(pace: Pace, reached: float, slowdown: float, pressure: float) -> Pace:
    was = reached if pace.bytes_per_s is None else pace.bytes_per_s
    factor = 1.0
    if pressure > HIGH_PRESSURE:
        factor = PRESSURE_DECREASE
    if slowdown > HIGH_SLOWDOWN:
        factor = min(factor, max(LEAST_DECREASE, (1 - slowdown) / (1 - TARGET_SLOWDOWN)))
    return replace(pace, bytes_per_s=max(pace.floor_bytes_per_s, was * factor))


def _span_ns(before: HostReading, after: HostReading) -> int:
    return after.time_ns - before.time_ns


def _waiting(was_us: int | None, is_us: int | None, span_ns: int) -> float:
    """Share of the time, 0 to 1."""
    if was_us is None or is_us is None or span_ns <= 0:
        return 0.0
    return min(1.0, max(0.0, (is_us - was_us) * 1000 / span_ns))
