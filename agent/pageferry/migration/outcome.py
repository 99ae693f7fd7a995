"""From whatever a migration raised to the one error that the operator is told."""

from __future__ import annotations

from collections.abc import Iterator

from pageferry.migration.journal import JournalError
from pageferry.model.errors import (
    KernelFeatureError,
    MigrationFailedError,
    OutcomeUnknownError,
    PageferryError,
    QemuError,
    RefusedError,
    TrackingLostError,
)

_WEIGHT: tuple[type[BaseException], ...] = (
    OutcomeUnknownError,
    RefusedError,
    QemuError,
    TrackingLostError,
    KernelFeatureError,
    MigrationFailedError,
    PageferryError,
    JournalError,
    OSError,
)
"""When several tasks fail at once, the first of these explains the others: a peer that gave up or a
connection that broke is more often the effect than the cause."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside nested exception groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def weightiest(error: BaseException) -> BaseException:
    """The one error that explains the rest."""

    def weight(leaf: BaseException) -> int:
        for index, kind in enumerate(_WEIGHT):
            if isinstance(leaf, kind):
                return index
        return -1  # a bug of ours: never hide it behind what it caused

    return min(leaves(error), key=weight)


def explained(error: BaseException) -> PageferryError:
    """The weightiest error as a PageferryError that an operator can act on."""
    chosen = weightiest(error)
    if isinstance(chosen, PageferryError):
        return chosen
    if isinstance(chosen, JournalError):
        wrapped: PageferryError = MigrationFailedError(
            str(chosen), advice="make room on the state directory's disk and try again"
        )
    elif isinstance(chosen, OSError):
        wrapped = MigrationFailedError(
            f"the system refused: {chosen}", advice="see the agent's log for the context"
        )
    else:
        wrapped = PageferryError(
            f"internal error: {type(chosen).__name__}: {chosen}",
            advice="please report this with the agent's log",
        )
    wrapped.__cause__ = chosen
    return wrapped
