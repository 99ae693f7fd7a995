"""Named points at which a test can make this process fail, as hosts and disks do.

``PAGEFERRY_FAULTS="NAME=ACTION,NAME=ACTION"`` in the environment of a worker or a daemon. Actions:
``kill`` (SIGKILL to itself, so that nothing is cleaned up), an errno's name (``ENOSPC``, ``EIO``)
to be raised as OSError there, ``hang`` (for an hour, in the calling thread), or ``stop`` (SIGSTOP
to itself, until whoever asked for it continues it). Without the variable a point costs one
dictionary look-up.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Mapping
from typing import Final

VARIABLE: Final = "PAGEFERRY_FAULTS"

HANG_S: Final = 3600.0


def _wanted(text: str) -> Mapping[str, str]:
    pairs = (each.partition("=") for each in text.split(",") if each)
    return {name.strip(): action.strip() for name, _, action in pairs}


_faults = _wanted(os.environ.get(VARIABLE, ""))


def fault_point(name: str) -> None:
    """Fail here if that was asked for. Raises OSError for an errno's name."""
    action = _faults.get(name)
    if action is None:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "hang":
        time.sleep(HANG_S)
    else:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number))
