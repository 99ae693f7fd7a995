"""File descriptors on their way from an accepted connection to a worker."""

from __future__ import annotations

import os
from types import TracebackType


class FdOwner:
    """Owns at most one descriptor: closed at the end of the block, unless released before."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    @property
    def numbers(self) -> list[int]:
        """The descriptor, as what is passed along with a packet."""
        return [] if self._fd is None else [self._fd]

    def release(self) -> int:
        """Give the descriptor away. Raises ValueError when there is none."""
        fd, self._fd = self._fd, None
        if fd is None:
            raise ValueError("no descriptor to give away")
        return fd

    def close(self) -> None:
        """Close it now; again does nothing."""
        if self._fd is not None:
            os.close(self.release())

    def __enter__(self) -> FdOwner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
