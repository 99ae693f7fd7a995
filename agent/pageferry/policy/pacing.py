"""How fast cold pages may be paged in while others on the host want the same memory and disk.

Additive increase, multiplicative decrease on a rate, as TCP shares a link: while others wait for
memory or I/O the rate is halved, down to a tenth of what the swap device has been seen to do; when
they no longer do it rises again, and beyond what can be reached it is no limit at all.

The kernel's pressure stall information (PSI) counts the waits of our own page-ins like everybody's,
so what is compared is the share of the time in which somebody waited *while we did not*: alone on
an idle host that is next to nothing, however hard we work. The guest's own cgroup has none of our
threads in it; its pressure counts in full. Waits for I/O are no harm by themselves: a program that
reads a disk waits for it most of the time, whoever else does. So they count only as far as they
have become more since before the migration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

NS_PER_S = 1_000_000_000
US_PER_S = 1_000_000
MIB = 1024 * 1024

HIGH = 0.20
"""Share of the time for which somebody else waits, above which the rate is halved. Neighbours that
swap gently wait for a few percent of the time without us, those that thrash for most of it."""

LOW = 0.08
"""Below this the rate rises again. Between the two it stays, so that it does not swing."""

DECREASE = 0.5

INCREASE_SHARE = 1 / 40
"""Of the fastest rate seen, gained per reading of a tenth of a second: from the floor to full speed
in four seconds of quiet."""

FLOOR_SHARE = 0.1
"""Of the fastest rate seen: what is left to us even while others wait. They may have waited before
we came, and may go on when we are gone; a migration that stands still helps nobody."""

LEAST_BYTES_PER_S = 1 * MIB
"""The floor before any rate has been seen."""

SMOOTHING = 0.4
"""Weight of the last reading: a wait that is over within a tenth of a second is nobody's trouble.
Alone on a host our own reclaim has been seen to make 0.05 to 0.15, and 0.27 once in 50 readings."""

LEAST_FREE_SHARE = 0.05
"""With less of the time free of our own waits, what others did in it says nothing."""


@dataclass(frozen=True, slots=True)
class PressureReading:
    """Counters at one moment, all since some fixed time in the past. None: cannot be had here.

    ``memory_us`` and ``io_us``: time in which some task of the host waited (``some total``).
    ``guest_us``: the same for memory in the guest's own cgroup. ``own_ns``: what threads of ours
    have slept in calls that page in or out. ``paged_in_bytes``: by us.
    """

    time_ns: int
    memory_us: int | None
    io_us: int | None
    guest_us: int | None
    own_ns: int
    paged_in_bytes: int


@dataclass(frozen=True, slots=True)
class Pace:
    """The state between two readings. ``bytes_per_s`` None: as fast as the window lets it.

    ``pressure`` is smoothed. ``usual_io`` is the share of the time in which somebody waited for I/O
    before the migration began.
    """

    bytes_per_s: float | None = None
    fastest_bytes_per_s: float = 0.0
    pressure: float = 0.0
    usual_io: float = 0.0

    @property
    def floor_bytes_per_s(self) -> float:
        """The rate that no pressure gets below."""
        return max(LEAST_BYTES_PER_S, FLOOR_SHARE * self.fastest_bytes_per_s)


def before_the_migration(before: PressureReading, after: PressureReading) -> Pace:
    """The pace to begin with, by two readings from the time before anything was paged in."""
    usual_io = _some(before.io_us, after.io_us, after.time_ns - before.time_ns)
    return Pace(usual_io=usual_io)


def pressure_between(
    before: PressureReading, after: PressureReading, usual_io: float = 0.0
) -> float:
    """Share of the time, 0 to 1, for which others waited for memory, or the guest did; or for I/O,
    beyond the share that is usual.
    """
    span_ns = after.time_ns - before.time_ns
    if span_ns <= 0:
        return 0.0
    own = _share(after.own_ns - before.own_ns, span_ns)
    memory = _others(_some(before.memory_us, after.memory_us, span_ns), own)
    more_io = _others(_some(before.io_us, after.io_us, span_ns), own) - usual_io
    guest = _some(before.guest_us, after.guest_us, span_ns)
    return max(memory, more_io, guest, 0.0)


def next_pace(pace: Pace, before: PressureReading, after: PressureReading) -> Pace:
    """The pace after one more reading. Both readings being equal in time changes nothing.

    The result is between the floor and no limit; for more pressure it is never faster; with no
    pressure it becomes "no limit" after a bounded number of readings.
    """
    span_ns = after.time_ns - before.time_ns
    if span_ns <= 0:
        return pace
    reached = max(0, after.paged_in_bytes - before.paged_in_bytes) * NS_PER_S / span_ns
    found = pressure_between(before, after, pace.usual_io)
    pressure = pace.pressure + (found - pace.pressure) * SMOOTHING
    pace = replace(
        pace, fastest_bytes_per_s=max(pace.fastest_bytes_per_s, reached), pressure=pressure
    )
    if pace.bytes_per_s is not None:
        # The floor has risen with the fastest rate.
        pace = replace(pace, bytes_per_s=max(pace.bytes_per_s, pace.floor_bytes_per_s))
    if pressure > HIGH:
        was = reached if pace.bytes_per_s is None else pace.bytes_per_s
        return replace(pace, bytes_per_s=max(pace.floor_bytes_per_s, was * DECREASE))
    if pace.bytes_per_s is None or pressure > LOW:
        return pace
    step = max(LEAST_BYTES_PER_S, pace.fastest_bytes_per_s * INCREASE_SHARE)
    rate = pace.bytes_per_s + step
    # Beyond the fastest it does not limit any more.
    return replace(pace, bytes_per_s=None if rate > pace.fastest_bytes_per_s else rate)


def allowed_bytes_per_s(pace: Pace, max_swap_bandwidth: int, *, paced: bool) -> int:
    """What the page-in may use, in bytes per second, 0 for no limit.

    The lower of the pace (when *paced*) and the operator's limit (0: none).
    """
    limits = [max_swap_bandwidth] if max_swap_bandwidth else []
    if paced and pace.bytes_per_s is not None:
        limits.append(max(1, int(pace.bytes_per_s)))
    return min(limits, default=0)


def _share(part_ns: int, span_ns: int) -> float:
    return min(1.0, max(0.0, part_ns / span_ns))


def _some(was_us: int | None, is_us: int | None, span_ns: int) -> float:
    if was_us is None or is_us is None or span_ns <= 0:
        return 0.0
    return _share((is_us - was_us) * 1000, span_ns)


def _others(some: float, own: float) -> float:
    """What part of the time that is free of our own waits was somebody else's wait."""
    free = 1.0 - own
    if free < LEAST_FREE_SHARE:
        return 0.0
    return min(1.0, max(0.0, some - own) / free)
