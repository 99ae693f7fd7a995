"""The parameters of a migration that runs, and what happens when they are changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pageferry.model.parameters import MigrationParameters, check_changeable


class Tuning:
    """Holds the parameters. All calls from the migration's own trio thread."""

    def __init__(self, parameters: MigrationParameters) -> None:
        self.parameters = parameters
        self._listeners: list[Callable[[MigrationParameters], None]] = []

    def on_change(self, listener: Callable[[MigrationParameters], None]) -> None:
        """Call *listener* with the new parameters after each change."""
        self._listeners.append(listener)

    def change(self, values: Mapping[str, Any]) -> None:
        """Set some parameters anew.

        Raises RefusedError, and changes nothing, for values out of range and for parameters that
        only a new migration can have.
        """
        check_changeable(values)
        self.parameters = self.parameters.updated(values)
        for listener in self._listeners:
            listener(self.parameters)
