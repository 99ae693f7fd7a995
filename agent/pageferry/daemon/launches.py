"""Which guests the daemon starts a QEMU for when they come: keys of [guests.NAME]."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping
from typing import Any, Final

from pageferry.model.launch import Launch
from pageferry.policy.command_line import complaint_about_launch

LAUNCH_KEYS: Final = ("launch", "launch-user", "launch-cgroup")

Complain = Callable[[str, str, str], Exception]
"""Makes the error for a key: its name, what is wrong, what would be right."""


def read_launch(entry: Mapping[str, Any], qmp: str, complain: Complain) -> Launch | None:
    """The launch keys of one guest's table; None without a command. Raises what *complain*
    makes."""
    if "launch" not in entry:
        for key in LAUNCH_KEYS[1:]:
            if key in entry:
                raise complain(key, "there is no launch that it would be for", "add launch")
        return None
    command = entry["launch"]
    example = '["/usr/bin/qemu-system-x86_64", "-S", "-incoming", "defer", ...]'
    if not isinstance(command, list) or not command or not all(map(_is_argument, command)):
        raise complain("launch", "must be a list of words", f"write as in {example}")
    if not command[0].startswith("/"):
        raise complain("launch", f"{command[0]!r} is no absolute path", f"write as in {example}")
    wrong = complaint_about_launch(command, qmp)
    if wrong:
        raise complain("launch", wrong, "correct the command")
    uid, gid, groups = read_user(entry, "launch-user", complain)
    cgroup = read_cgroup(entry, "launch-cgroup", complain)
    return Launch(tuple(command), uid, gid, groups, cgroup)


def read_user(
    entry: Mapping[str, Any], key: str, complain: Complain
) -> tuple[int | None, int | None, tuple[int, ...]]:
    """User, group and supplementary groups by the user's name. Raises what *complain* makes."""
    if key not in entry:
        return None, None, ()
    name = entry[key]
    try:
        user = pwd.getpwnam(name) if isinstance(name, str) else None
    except (KeyError, ValueError):
        user = None
    if user is None:
        raise complain(
            key,
            f"there is no user {name!r} on this host",
            "name one that may use /dev/kvm and the guest's files",
        )
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    return user.pw_uid, user.pw_gid, tuple(groups)


def read_cgroup(entry: Mapping[str, Any], key: str, complain: Complain) -> str:
    """A cgroup's name. Raises what *complain* makes."""
    name = entry.get(key, "")
    parts = name.split("/") if isinstance(name, str) else [".."]
    is_named = not name or (parts[0] == "" and all(parts[1:]) and len(parts) > 1)
    if not is_named or "." in parts or ".." in parts:
        raise complain(key, f"{name!r} is no cgroup's name", 'write as in "/machine.slice/web1"')
    return str(name)


def _is_argument(word: object) -> bool:
    return isinstance(word, str) and word != "" and "\0" not in word
