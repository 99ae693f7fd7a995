"""Exit statuses. They are part of the interface: scripts depend on them."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from pageferry.control.errors import CommandError
from pageferry.control.info import MigrationInfo


class ExitCode(IntEnum):
    """What a verb ends with."""

    COMPLETED = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    CANCELLED = 4
    UNKNOWN = 5
    UNREACHABLE = 6


MEANINGS: Final = {
    ExitCode.COMPLETED: "done; for migrate: the guest runs on the destination",
    ExitCode.FAILED: "failed, or another error; before the commit the guest stays on the source",
    ExitCode.USAGE: "wrong usage",
    ExitCode.REFUSED: "refused before anything was touched",
    ExitCode.CANCELLED: "cancelled; the guest stays on the source",
    ExitCode.UNKNOWN: "outcome unknown: run pageferry recover, start the guest nowhere by hand",
    ExitCode.UNREACHABLE: "the daemon cannot be reached; migrations that run go on without it",
}

EPILOG: Final = "exit status:\n" + "\n".join(
    f"  {code.value}  {meaning}" for code, meaning in MEANINGS.items()
)

_OF_KIND: Final = {
    "usage": ExitCode.USAGE,
    "refused": ExitCode.REFUSED,
    "configuration": ExitCode.REFUSED,
    "cancelled": ExitCode.CANCELLED,
    "unknown": ExitCode.UNKNOWN,
    "unreachable": ExitCode.UNREACHABLE,
}


def of_report(report: dict[str, Any]) -> ExitCode:
    """From an error's report."""
    return _OF_KIND.get(str(report.get("kind")), ExitCode.FAILED)


def of_command_error(error: CommandError) -> ExitCode:
    """From the daemon's refusal of a command."""
    return of_report(error.report)


def of_migration(info: MigrationInfo) -> ExitCode:
    """From a migration that is over."""
    if info.status == "completed":
        return ExitCode.COMPLETED
    if info.error:
        return of_report(dict(info.error))
    return ExitCode.CANCELLED if info.status == "cancelled" else ExitCode.FAILED
