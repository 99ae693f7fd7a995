"""How large a part of a busy processor the calling thread gets."""

from __future__ import annotations

import os
import resource
import threading
import time
from typing import Final

from pageferry.kernel.host import CAP_SYS_NICE, effective_capabilities, has_capability

POLITE_NICE: Final = 10
"""A tenth of the weight of a thread at 0 (sched(7): 1.25 times less for each step)."""

LOOK_NS: Final = 500_000_000
"""How often a polite thread asks itself whether it gets any processor at all."""

CROWDED_SHARE: Final = 0.5
"""Share of the time for which a polite thread waits for a processor, from which on it is content
with being nice: a host whose processors are never idle must be left in bounded time as well."""

_NICE_LIMIT_AT_0: Final = 20
"""RLIMIT_NICE that lets a process come back to nice 0 (getrlimit(2): 20 minus the nice value)."""


def be_considerate() -> None:
    """Let the calling thread, and those that it starts, take no processor from whoever runs on it.

    As SCHED_BATCH (sched(7)) they have the same share as before, and run at once where a processor
    is idle, but do not preempt at wake-up: a vCPU lost up to 0.6 ms each time that an agent heard
    or read something.
    """
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class ThreadPriority:
    """The calling thread's priority. Make one in the thread that uses it.

    A polite thread runs as SCHED_IDLE: a vCPU that wakes up takes the processor from it at once,
    where one that is only nice goes on to the end of its slice. On two processors, shared by a
    guest and both agents, the 99th percentile of the guest's time for a batch of touches during the
    migration was 1.8 times its usual one in this way, 1.5 to 2.7 times with nice 10 alone, 1.9 to
    2.6 times without either.

    A thread that could not take its usual priority back (without CAP_SYS_NICE or RLIMIT_NICE) keeps
    it: what comes after the first pass must not be slow for good.
    """

    def __init__(self) -> None:
        self._thread_id = threading.get_native_id()
        self._usual = os.getpriority(os.PRIO_PROCESS, self._thread_id)
        self._usual_policy = os.sched_getscheduler(self._thread_id)
        self._is_polite = False
        self._is_crowded = False
        self._looked_ns = 0
        self._waited_ns = 0

    def set_polite(self, polite: bool) -> None:
        """Whether to leave the processor to others from now on. To be called again and again: it
        costs next to nothing, and a polite thread sees in it whether it comes to run at all.
        """
        if polite and self._is_polite:
            self._look()
        elif polite != self._is_polite and (not polite or _may_return(self._usual)):
            self._is_polite = polite
            nice = max(self._usual, POLITE_NICE) if polite else self._usual
            os.setpriority(os.PRIO_PROCESS, self._thread_id, nice)
            self._run_as(os.SCHED_IDLE if polite and not self._is_crowded else self._usual_policy)
            self._looked_ns, self._waited_ns = time.monotonic_ns(), _waited_ns()

    def _look(self) -> None:
        span_ns = time.monotonic_ns() - self._looked_ns
        if self._is_crowded or span_ns < LOOK_NS:
            return
        waited_ns = _waited_ns()
        if waited_ns - self._waited_ns > CROWDED_SHARE * span_ns:
            self._is_crowded = True
            self._run_as(self._usual_policy)
        self._looked_ns, self._waited_ns = time.monotonic_ns(), waited_ns

    def _run_as(self, policy: int) -> None:
        os.sched_setscheduler(self._thread_id, policy, os.sched_param(0))


def _may_return(usual_nice: int) -> bool:
    if has_capability(effective_capabilities(), CAP_SYS_NICE):
        return True
    soft, _hard = resource.getrlimit(resource.RLIMIT_NICE)
    return soft == resource.RLIM_INFINITY or soft >= _NICE_LIMIT_AT_0 - usual_nice


def _waited_ns() -> int:
    """For how long the calling thread has waited for a processor (schedstat,
    Documentation/scheduler/sched-stats.rst); 0 without CONFIG_SCHED_INFO."""
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as schedstat:
            return int(schedstat.read().split()[1])
    except OSError:
        return 0
