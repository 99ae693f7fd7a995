"""A bandwidth that several threads share, and for how long they have waited for the kernel."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pageferry.policy.bandwidth import NS_PER_S, TokenBucket


class Limiter:
    """Makes threads wait so that all of them together keep to a rate. Any thread may call."""

    def __init__(self, bytes_per_s: int = 0) -> None:
        """*bytes_per_s* 0: no limit."""
        self._bucket = TokenBucket(bytes_per_s)
        self._changed = threading.Condition()
        self._stopped = False

    @property
    def bytes_per_s(self) -> int:
        """The rate; 0 without a limit."""
        return self._bucket.bytes_per_s

    def set_rate(self, bytes_per_s: int) -> None:
        """From now on another rate; who waits now waits to the end."""
        with self._changed:
            self._bucket.set_rate(bytes_per_s, time.monotonic_ns())

    def pass_through(self, length_bytes: int) -> None:
        """Wait until *length_bytes* may go. Returns at once when stopped."""
        if not self._bucket.bytes_per_s:
            return
        with self._changed:
            now_ns = time.monotonic_ns()
            until_ns = now_ns + self._bucket.take(length_bytes, now_ns)
            while not self._stopped and (now_ns := time.monotonic_ns()) < until_ns:
                self._changed.wait((until_ns - now_ns) / NS_PER_S)

    def take(self, length_bytes: int) -> None:
        """Let *length_bytes* through without waiting; `wait_ns` tells what that costs the next."""
        with self._changed:
            self._bucket.take(length_bytes, time.monotonic_ns())

    def wait_ns(self) -> int:
        """After how many ns something may go; 0: at once."""
        with self._changed:
            return self._bucket.wait_ns(time.monotonic_ns())

    def stop(self) -> None:
        """Nobody waits any more, now or later."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class WaitClock:
    """For how long threads of ours have slept inside `waiting`, all together. Any thread may call.

    That is what the kernel can count as our waits for memory or I/O: not the time in which a thread
    ran, nor that in which it waited for a processor (schedstat, Documentation/scheduler/
    sched-stats.rst), which on a busy host is most of what a call takes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total_ns = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count what this thread sleeps within the block."""
        began_ns, ran_ns = time.monotonic_ns(), _scheduled_ns()
        try:
            yield
        finally:
            slept_ns = time.monotonic_ns() - began_ns - (_scheduled_ns() - ran_ns)
            with self._lock:
                self._total_ns += max(0, slept_ns)

    def total_ns(self) -> int:
        """The time so far; only grows."""
        with self._lock:
            return self._total_ns


def _scheduled_ns() -> int:
    """For how long the calling thread has run or waited for a processor."""
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as schedstat:
            ran_ns, queued_ns = schedstat.read().split()[:2]
    except OSError:
        # A kernel without CONFIG_SCHED_INFO: what it waited for a processor counts as sleep.
        return time.thread_time_ns()
    return int(ran_ns) + int(queued_ns)
