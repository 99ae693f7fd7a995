"""Cancel and commit: whichever comes first excludes the other."""

from __future__ import annotations

import trio

from pageferry.model.errors import MigrationCancelledError


class Cancellation:
    """Run what may be cancelled inside ``scope``. All calls from the same trio thread."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self._requested = False
        self._committing = False

    @property
    def came_first(self) -> bool:
        """Whether a cancel was asked for before the commit began."""
        return self._requested and not self._committing

    def request(self) -> bool:
        """Cancel. False, and nothing happens, when the commit has begun."""
        if self._committing:
            return False
        self._requested = True
        self.scope.cancel()
        return True

    def begin_commit(self) -> None:
        """From here on no cancel takes effect. Raises MigrationCancelledError if one came first."""
        if self._requested:
            raise MigrationCancelledError("the migration was cancelled")
        self._committing = True
