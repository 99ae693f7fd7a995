"""How large a part of a busy processor the calling thread gets."""

from __future__ import annotations

import os
import resource
import threading
from typing import Final

from pageferry.kernel.host import CAP_SYS_NICE, effective_capabilities, has_capability

POLITE_NICE: Final = 10
"""A tenth of the weight of a thread at 0 (sched(7): 1.25 times less for each step), so that a vCPU
that wakes up is not kept waiting by a thread of ours. On two processors shared by a guest and both
agents the 99th percentile of the guest's time for a batch of touches during the cold pass was 2.5
times its usual one without this, 1.2 to 1.7 times with it."""

_NICE_LIMIT_AT_0: Final = 20
"""RLIMIT_NICE that lets a process come back to nice 0 (getrlimit(2): 20 minus the nice value)."""


class ThreadPriority:
    """The calling thread's priority. Make one in the thread that uses it.

    A thread that could not take its usual priority back (without CAP_SYS_NICE or RLIMIT_NICE) keeps
    it: what comes after the cold pass must not be slow for good.
    """

    def __init__(self) -> None:
        self._thread_id = threading.get_native_id()
        self._usual = os.getpriority(os.PRIO_PROCESS, self._thread_id)
        self._is_polite = False

    def set_polite(self, polite: bool) -> None:
        """Whether to leave the processor to others from now on. Costs nothing when it is so."""
        if polite == self._is_polite or (polite and not _may_return(self._usual)):
            return
        nice = max(self._usual, POLITE_NICE) if polite else self._usual
        os.setpriority(os.PRIO_PROCESS, self._thread_id, nice)
        self._is_polite = polite


def _may_return(usual_nice: int) -> bool:
    if has_capability(effective_capabilities(), CAP_SYS_NICE):
        return True
    soft, _hard = resource.getrlimit(resource.RLIMIT_NICE)
    return soft == resource.RLIM_INFINITY or soft >= _NICE_LIMIT_AT_0 - usual_nice
