"""What a test can make the product do wrong, or suffer, to see that it matters and is noticed.

Two kinds, under one guard:

- *Rules* that the product then breaks, such as skipping a drain. Each can cost a guest its memory,
  silently.
- *Fault points*: named places at which the process then fails as hosts and disks do.

They act only where both variables are set in the environment of pageferryd, which hands them on to
its workers::

    PAGEFERRY_FAULTS=skip-drain,back-to-back-rounds=40,in-source-cold=kill
    PAGEFERRY_ENABLE_FAULTS=guests-may-be-lost

pageferryd does not start when the first is set without the second, or names what does not exist. A
rule stands alone or has a number; a fault point has an action:

======================  ==========================================================================
``kill``                SIGKILL to itself: nothing is cleaned up
``stop``                SIGSTOP to itself, until whoever asked for it continues it
``hang``                the calling thread sleeps for an hour
an errno's name         ``ENOSPC``, ``EIO``: raised as OSError there
``wait:FOLDER``         makes ``FOLDER/NAME.reached``, with its process number in it, and goes on
                        when ``FOLDER/NAME.go`` exists: for faults that strike from outside
======================  ==========================================================================

This module imports nothing of pageferry's but the phases, so that every layer with effects may ask
it.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Final

from pageferry.model.phase import DestinationPhase, SourcePhase

FAULTS_VARIABLE: Final = "PAGEFERRY_FAULTS"
ENABLE_VARIABLE: Final = "PAGEFERRY_ENABLE_FAULTS"
ENABLED: Final = "guests-may-be-lost"

SKIP_DRAIN: Final = "skip-drain"
"""Believe copies of pages that direct I/O may still be filling: no drain at all."""

DRAIN_EVERY_ROUND: Final = "drain-every-round"
"""Postpone no drain, however slow they are and whatever that does to the guest."""

BACK_TO_BACK_ROUNDS: Final = "back-to-back-rounds"
"""At least that many rounds, one after the other without a pause, whatever is left to send."""

RULES: Final = (SKIP_DRAIN, DRAIN_EVERY_ROUND, BACK_TO_BACK_ROUNDS)

NUMBERED: Final = frozenset({BACK_TO_BACK_ROUNDS})
"""Rules that have a number."""

BEFORE_WRITE: Final = "before-write"
"""Nothing of the record of a phase is in the journal yet."""

HALF_WRITTEN: Final = "half-written"
"""Half of the record's line is in the journal."""

BEFORE_SYNC: Final = "before-sync"
"""All of the record is written, and not yet synced."""

JOURNAL_STAGES: Final = (BEFORE_WRITE, HALF_WRITTEN, BEFORE_SYNC)

CPU_QUOTA: Final = "cpu-quota"
"""Giving the vCPUs of a guest a quota. An errno makes it a host that does not allow that."""

HANG_S: Final = 3600.0

WAIT_INTERVAL_S: Final = 0.005

Phase = SourcePhase | DestinationPhase


def in_phase(phase: Phase) -> str:
    """The fault point at the entry of a phase: it is on disk, and nothing of it is done yet."""
    return f"in-{role_of(phase)}-{phase.value}"


def journalling(stage: str, phase: Phase) -> str:
    """The fault point at one of JOURNAL_STAGES of writing the record of a phase."""
    return f"journal-{stage}-{role_of(phase)}-{phase.value}"


def role_of(phase: Phase) -> str:
    """Whose phase it is: ``source`` or ``destination``."""
    return "source" if isinstance(phase, SourcePhase) else "destination"


BEFORE_CONT: Final = "before-cont"
"""A destination's QEMU has answered that it is there, and is told to run the guest next."""

_PHASES: Final[tuple[Phase, ...]] = (*SourcePhase, *DestinationPhase)

POINTS: Final = frozenset(
    {BEFORE_CONT, CPU_QUOTA}
    | {in_phase(phase) for phase in _PHASES}
    | {journalling(stage, phase) for stage in JOURNAL_STAGES for phase in _PHASES}
)
"""Every fault point there is."""

_WAIT: Final = "wait:"


class FaultsError(Exception):
    """The environment asks for faults in a way that must not be followed; the message says why."""


def requested_faults() -> dict[str, str]:
    """What the environment asks for, with numbers and actions; empty when it asks for nothing.

    Raises FaultsError when it does not say that guests may be lost, or names what does not exist.
    """
    text = os.environ.get(FAULTS_VARIABLE, "")
    if not text:
        return {}
    if os.environ.get(ENABLE_VARIABLE) != ENABLED:
        raise FaultsError(
            f"{FAULTS_VARIABLE} is set, which makes pageferry lose guests on purpose: unset it"
        )
    wanted = dict(word.partition("=")[::2] for word in text.split(","))
    unknown = sorted(wanted.keys() - POINTS - set(RULES))
    if unknown:
        raise FaultsError(
            f"{FAULTS_VARIABLE} names {', '.join(unknown)}; there are the rules"
            f" {', '.join(RULES)}, and the points {BEFORE_CONT}, {CPU_QUOTA}, in-SIDE-PHASE"
            f" and journal-{{{','.join(JOURNAL_STAGES)}}}-SIDE-PHASE"
        )
    for name, value in wanted.items():
        _check(name, value)
    return wanted


def is_broken(rule: str) -> bool:
    """Whether this rule is to be broken. False in every real migration."""
    return rule in requested_faults()


def number_of(rule: str) -> int:
    """The number that this rule was given; 0 when it is not asked for."""
    return int(requested_faults().get(rule, "0"))


def fault_point(name: str) -> None:
    """Fail here if that was asked for. Raises OSError for an errno's name.

    Blocking: for threads. LookupError when there is no such point: it must be declared here.
    """
    if name not in POINTS:
        raise LookupError(f"{name} is no fault point of pageferry.testing.faults")
    action = requested_faults().get(name)
    if action is None:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "hang":
        time.sleep(HANG_S)
    elif action.startswith(_WAIT):
        _wait(Path(action.removeprefix(_WAIT)), name)
    else:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number))


def reached_path(folder: Path, name: str) -> Path:
    """What a point with ``wait:FOLDER`` makes when it is reached."""
    return folder / f"{name}.reached"


def go_path(folder: Path, name: str) -> Path:
    """What it waits for."""
    return folder / f"{name}.go"


def _wait(folder: Path, name: str) -> None:
    fresh = folder / f"{name}.new"
    fresh.write_text(str(os.getpid()))
    fresh.rename(reached_path(folder, name))
    go = go_path(folder, name)
    while not go.exists():
        time.sleep(WAIT_INTERVAL_S)


def _check(name: str, value: str) -> None:
    if name in NUMBERED:
        if not value.isdecimal():
            raise FaultsError(f"{name} wants a number, such as {name}=10, not {value!r}")
    elif name in RULES:
        if value:
            raise FaultsError(f"{name} stands alone, without {value!r}")
    elif not _is_action(value):
        raise FaultsError(
            f"{name} wants an action: kill, stop, hang, wait:FOLDER or an errno's name, not"
            f" {value!r}"
        )


def _is_action(value: str) -> bool:
    if value.startswith(_WAIT):
        return Path(value.removeprefix(_WAIT)).is_absolute()
    return value in ("kill", "stop", "hang") or isinstance(getattr(errno, value, None), int)
