"""Which guests the daemon starts a QEMU for when they come: keys of [guests.NAME]."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pageferry.model.launch import Launch
from pageferry.policy.command_line import complaint_about_launch
from pageferry.policy.followed_command import NAME_PLACE
from pageferry.policy.peers import any_matches

LAUNCH_KEYS: Final = ("launch", "launch-user", "launch-cgroup")

FOLLOW_KEYS: Final = ("program", "peers", "guests", "paths", "interfaces", "user", "cgroup")

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


@dataclass(frozen=True, slots=True)
class Following:
    """[launch-from-source]: whose command lines are followed, of which guests, and how far.

    ``cgroup`` may have ``{name}`` in it.
    """

    peers: tuple[str, ...]
    guests: tuple[str, ...]
    launch: Launch

    def launch_of(self, guest: str, names: Sequence[str]) -> Launch | None:
        """How *guest* is started when the holder of a certificate with these *names* sends it; None
        where its command line is not followed. No certificate has no names."""
        if not any_matches(names, self.peers) or not any_matches([guest], self.guests, fold=False):
            return None
        return replace(self.launch, cgroup=self.launch.cgroup.replace(NAME_PLACE, guest))


def read_following(entry: Mapping[str, Any], complain: Complain) -> Following | None:
    """The table; None where it is empty. Raises what *complain* makes."""
    if not entry:
        return None
    for key in ("program", "peers", "paths"):
        if key not in entry:
            raise complain(key, "is missing", "nothing is followed without it")
    lists = {}
    for key, default in (("peers", []), ("guests", ["*"]), ("paths", []), ("interfaces", [])):
        value = entry.get(key, default)
        if not isinstance(value, list) or not all(map(_is_argument, value)):
            raise complain(key, f"{value!r} is no list of words", 'write as in ["web*"]')
        lists[key] = tuple(value)
    for path in (entry["program"], *lists["paths"]):
        if not isinstance(path, str) or not path.startswith("/") or ".." in path.split("/"):
            key = "program" if path is entry["program"] else "paths"
            raise complain(key, f"{path!r} is no absolute path", "write a path from / on")
    uid, gid, groups = read_user(entry, "user", complain)
    if uid is None:
        raise complain(
            "user", "is missing", "name the user that such QEMUs run as, with no rights but theirs"
        )
    cgroup = read_cgroup(entry, "cgroup", complain)
    launch = Launch(
        (entry["program"],), uid, gid, groups, cgroup, True, lists["paths"], lists["interfaces"]
    )
    return Following(lists["peers"], lists["guests"], launch)


def in_service(launch: Launch) -> Launch:
    """*launch* by systemd, in a service of its own; one that goes through systemd-run by itself is
    left as it is."""
    if os.path.basename(launch.command[0]) == "systemd-run":
        return launch
    return replace(launch, in_service=True)


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
