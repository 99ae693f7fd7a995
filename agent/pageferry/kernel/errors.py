"""From the C extension's errno values to Python's exceptions."""

from __future__ import annotations

import errno
import os


def check(error: int, action: str) -> None:
    """Raise what *error* (0 or an errno value, as native functions return) stands for.

    ERANGE is ours: pages beyond the end of a block, mapping or set, found before anything was done;
    it becomes ValueError. Everything else becomes OSError (so ENOMEM too), with *action* in its
    message: ``[Errno 28] No space left on device: write guest RAM``.
    """
    if not error:
        return
    if error == errno.ERANGE:
        raise ValueError(f"{action}: pages beyond the end")
    raise OSError(error, f"{os.strerror(error)}: {action}")
