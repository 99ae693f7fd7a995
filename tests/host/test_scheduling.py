"""The priority of threads of the first pass, as the kernel has it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from pageferry.kernel import scheduling
from pageferry.kernel.scheduling import POLITE_NICE, ThreadPriority

pytestmark = pytest.mark.root


def in_a_thread(work: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def now() -> tuple[int, int]:
    """Policy and nice of the calling thread."""
    return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_polite_and_back() -> None:
    def work() -> None:
        usual = now()
        priority = ThreadPriority()
        for _turn in range(3):
            priority.set_polite(True)
            priority.set_polite(True)
            assert now() == (os.SCHED_IDLE, max(POLITE_NICE, usual[1]))
            priority.set_polite(False)
            assert now() == usual

    before = now()
    in_a_thread(work)
    assert now() == before, "it is the thread's own"


def test_a_considerate_thread_comes_back_to_that_and_hands_it_on() -> None:
    def work() -> None:
        scheduling.be_considerate()
        usual = now()
        assert usual[0] == os.SCHED_BATCH
        in_a_thread(lambda: None if now() == usual else pytest.fail(f"{now()}"))
        priority = ThreadPriority()
        priority.set_polite(True)
        assert now()[0] == os.SCHED_IDLE
        priority.set_polite(False)
        assert now() == usual

    before = now()
    in_a_thread(work)
    assert now() == before


def test_where_it_never_runs_it_is_nice_only(monkeypatch: pytest.MonkeyPatch) -> None:
    waited_ns = iter(range(0, 10**12, 10**9))
    monkeypatch.setattr(scheduling, "_waited_ns", lambda: next(waited_ns))
    monkeypatch.setattr(scheduling, "LOOK_NS", 0)

    def work() -> None:
        priority = ThreadPriority()
        priority.set_polite(True)
        priority.set_polite(True)
        assert now() == (os.SCHED_OTHER, POLITE_NICE)

    in_a_thread(work)


def test_what_cannot_be_taken_back_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "_may_return", lambda _nice: False)

    def work() -> None:
        usual = now()
        ThreadPriority().set_polite(True)
        assert now() == usual

    in_a_thread(work)
