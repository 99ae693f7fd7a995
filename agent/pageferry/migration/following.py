"""Whether the destination's QEMU is started by the source's command line: `policy` says by its
words, this by what is there on the host."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pageferry.migration.answering import listens
from pageferry.model.errors import RefusedError
from pageferry.model.launch import Launch
from pageferry.policy.command_line import complaint_about_launch
from pageferry.policy.followed_command import FollowRules, NotFollowedError, followed_command


def completed_launch(
    launch: Launch | None, words: Sequence[str], guest: str, qmp: str
) -> Launch | None:
    """*launch* with its whole command, where it follows the source's; None: nothing is to be
    started, or nothing is known that could be. Raises RefusedError."""
    if launch is None or not launch.follows_source:
        return launch
    if listens(qmp) or not words:
        return None
    rules = FollowRules(launch.command[0], launch.paths, launch.interfaces)
    try:
        command, files = followed_command(words, rules, guest)
    except NotFollowedError as error:
        raise _refused(guest, str(error)) from None
    for path in files:
        # Storage that the source shares may hold links of its making.
        real = os.path.realpath(path)
        if real != path and not rules.allows(real, guest):
            raise _refused(guest, f"{path[:120]!r} leads to {real[:120]!r}")
    wrong = complaint_about_launch(command, qmp)
    if wrong:
        raise _refused(guest, wrong)
    return launch.completed(command)


def _refused(guest: str, why: str) -> RefusedError:
    return RefusedError(
        f"the command line of guest {guest}'s QEMU on the source is not followed here: {why}",
        advice="start its QEMU on the destination yourself, give it a launch command there, or"
        " widen [launch-from-source] there",
    )
