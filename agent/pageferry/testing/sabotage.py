"""Rules that a test makes the product break, to see that they matter and that it is noticed.

Each can cost a guest its memory, silently. So they act only where both variables are set in the
environment of pageferryd, which it hands on to its workers:

    PAGEFERRY_SABOTAGE=skip-drain,back-to-back-rounds=40
    PAGEFERRY_ENABLE_SABOTAGE=guests-may-be-lost

and pageferryd does not start when the first is set without the second, or names what does not
exist. What hosts and disks do by themselves is in ``migration.faults``. This module imports nothing
of pageferry's, so that every layer with effects may ask it.
"""

from __future__ import annotations

import os

SABOTAGE_VARIABLE = "PAGEFERRY_SABOTAGE"
ENABLE_VARIABLE = "PAGEFERRY_ENABLE_SABOTAGE"
ENABLED = "guests-may-be-lost"

SKIP_DRAIN = "skip-drain"
"""Believe copies of pages that direct I/O may still be filling: no drain at all."""

DRAIN_EVERY_ROUND = "drain-every-round"
"""Postpone no drain, however slow they are and whatever that does to the guest."""

BACK_TO_BACK_ROUNDS = "back-to-back-rounds"
"""At least that many rounds, one after the other without a pause, whatever is left to send."""

KNOWN = (SKIP_DRAIN, DRAIN_EVERY_ROUND, BACK_TO_BACK_ROUNDS)

NUMBERED = {BACK_TO_BACK_ROUNDS}


class SabotageError(Exception):
    """The environment asks for sabotage in a way that must not be followed; the message says
    why."""


def requested_sabotage() -> dict[str, str]:
    """What the environment asks for, with its values; empty when it asks for nothing.

    Raises SabotageError when it does not say that guests may be lost, or names what does not exist.
    """
    text = os.environ.get(SABOTAGE_VARIABLE, "")
    if not text:
        return {}
    if os.environ.get(ENABLE_VARIABLE) != ENABLED:
        raise SabotageError(
            f"{SABOTAGE_VARIABLE} is set, which makes pageferry lose guests on purpose: unset it"
        )
    wanted = dict(word.partition("=")[::2] for word in text.split(","))
    unknown = sorted(wanted.keys() - set(KNOWN))
    if unknown:
        raise SabotageError(
            f"{SABOTAGE_VARIABLE} names {', '.join(unknown)}; there are {', '.join(KNOWN)}"
        )
    for name in sorted(wanted.keys() & NUMBERED):
        if not wanted[name].isdecimal():
            raise SabotageError(f"{name} wants a number, such as {name}=10, not {wanted[name]!r}")
    return wanted


def sabotaged(name: str) -> bool:
    """Whether this is asked for. False in every real migration."""
    return name in requested_sabotage()


def sabotage_number(name: str) -> int:
    """The number that this was given; 0 when it is not asked for."""
    return int(requested_sabotage().get(name, "0"))
