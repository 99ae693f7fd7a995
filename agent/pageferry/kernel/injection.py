"""Having another process make a userfaultfd, and taking it over.

The mechanism, with its dangers, is native/inject.c; here a thread is chosen for it, and its
failures get their meaning.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from pageferry.kernel import procfs
from pageferry.kernel._native import ffi, lib
from pageferry.model.errors import KernelFeatureError, PageferryError, RefusedError

FUTEX = 202
SYSCALL_INSTRUCTION = b"\x0f\x05"
CHOICE_DEADLINE_S = 0.2
"""How long to wait for a thread to block in futex; QEMU's RCU thread is elsewhere for moments."""
CHOICE_PAUSE_S = 0.001

PRIVILEGE_ADVICE = "run pageferryd as root, or give it CAP_SYS_PTRACE"
"""The second is for /proc/PID/map_files, which opens the RAM file that QEMU maps."""


def take_userfaultfd(pid: int, avoid_threads: Collection[int]) -> tuple[int, int]:
    """A userfaultfd of process *pid*, and for how many nanoseconds its thread was stopped."""
    tid, address = _choose_thread(pid, avoid_threads)
    result = ffi.new("struct pf_injection *")
    error = lib.pf_inject_userfaultfd(pid, tid, address, result)
    if error:
        raise _injection_error(pid, result)
    return int(result.uffd), int(result.stopped_ns)


def _choose_thread(pid: int, avoid_threads: Collection[int]) -> tuple[int, int]:
    """A thread that may be stopped, and the address of a syscall instruction in its code.

    First choice is the oldest but for the main one, once it is blocked in futex: in QEMU that is
    the RCU thread, which is made before main() and does little but wait. It gets some time to
    block, as vCPU threads, which are younger, block in futex too while they are halted. Then any
    other thread in futex; then the main thread, which runs the monitor and block I/O, in any call.
    """
    deadline = time.monotonic() + CHOICE_DEADLINE_S
    while True:
        threads = [tid for tid in _threads_or_refuse(pid) if tid not in avoid_threads]
        others = [tid for tid in threads if tid != pid]
        patient = time.monotonic() < deadline
        for tid in others[:1] if patient else others:
            blocked = _blocked_call(pid, tid)
            if blocked is not None and blocked[0] == FUTEX:
                return tid, blocked[1]
        if not others or not patient:
            blocked = _blocked_call(pid, pid) if pid in threads else None
            if blocked is not None:
                return pid, blocked[1]
        if not patient:
            break
        time.sleep(CHOICE_PAUSE_S)
    raise RefusedError(
        f"process {pid} has no thread that could be stopped for a moment to set up tracking",
        advice="try again; if it keeps failing, the process hangs (is it in state D?)",
    )


def _threads_or_refuse(pid: int) -> list[int]:
    try:
        return procfs.threads_of(pid)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise RefusedError(f"process {pid} has ended", advice="start the guest") from error


def _blocked_call(pid: int, tid: int) -> tuple[int, int] | None:
    """Number and instruction address of the system call that the thread is blocked in, if any."""
    try:
        with open(f"/proc/{pid}/task/{tid}/syscall", encoding="ascii") as file:
            fields = file.read().split()
        if len(fields) < 9:  # "running", or "-1 SP PC" outside a system call
            return None
        address = int(fields[-1], 16) - len(SYSCALL_INSTRUCTION)
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            if os.pread(memory.fileno(), len(SYSCALL_INSTRUCTION), address) != SYSCALL_INSTRUCTION:
                return None
    except PermissionError as error:
        raise RefusedError(
            f"the threads of process {pid} may not be looked at", advice=PRIVILEGE_ADVICE
        ) from error
    except OSError:
        return None
    return int(fields[0]), address


def _injection_error(pid: int, result: Any) -> PageferryError:
    """What the failed injection means, by the step that failed."""
    error, step = int(result.error), int(result.step)
    if result.thread_lost:
        return KernelFeatureError(
            f"process {pid} was lost while its userfaultfd was made ({os.strerror(error)})",
            guest_state="unknown: the process may have ended",
            advice="look at the guest's status and log",
        )
    if step == lib.PF_STEP_ATTACH and error == errno.EPERM:
        return _attach_error(pid)
    if error == errno.ESRCH:
        return RefusedError(f"process {pid} has ended", advice="start the guest")
    if error == errno.ETIMEDOUT:
        return _timeout_error(pid, step)
    if step == lib.PF_STEP_CREATE and error in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
        return KernelFeatureError(
            f"process {pid} may not make a userfaultfd: {os.strerror(error)}",
            advice="check its seccomp filter and that the kernel has CONFIG_USERFAULTFD",
        )
    return KernelFeatureError(
        f"no userfaultfd could be made in process {pid}: {os.strerror(error)} at step {step}",
        advice=PRIVILEGE_ADVICE,
    )


def _attach_error(pid: int) -> PageferryError:
    tracer = _tracer_of(pid)
    if tracer:
        return RefusedError(
            f"process {pid} is being traced by {tracer}", advice="end the debugger or strace"
        )
    return RefusedError(f"process {pid} may not be traced", advice=PRIVILEGE_ADVICE)


def _timeout_error(pid: int, step: int) -> PageferryError:
    if step == lib.PF_STEP_STUCK:
        return KernelFeatureError(
            f"tracking of process {pid} could not be set up: its thread does not go on",
            guest_state="a thread is stopped until it can run",
            advice="if the guest's cgroup is frozen, thaw it",
        )
    return RefusedError(
        f"a thread of process {pid} did not stop in time",
        advice="try again; it may hang in I/O (state D), or its cgroup may be frozen",
    )


def _tracer_of(pid: int) -> str:
    """The process that traces a thread of *pid*, such as ``gdb (pid 12)``; empty when none does."""
    for tid in procfs.threads_of(pid):
        with suppress(OSError), open(f"/proc/{pid}/task/{tid}/status", encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name == "TracerPid" and int(value):
                    return f"{procfs.command_name(int(value))} (pid {int(value)})"
    return ""
