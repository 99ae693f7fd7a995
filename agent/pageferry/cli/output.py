"""How the verbs print: errors for people, JSON lines for programs, numbers with their units."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console

from pageferry.control.errors import CommandError
from pageferry.model.errors import PageferryError

_KIB: Final = 1024


class UsageError(PageferryError):
    """The words of a command line make no sense together; nothing was asked of the daemon."""

    kind = "usage"


def console(width: int = 160) -> Console:
    """For tables and sentences. Texts are printed as they stand: in messages "[peers]" is a table
    of the configuration, not rich's markup. Without a terminal rich would cut tables to 80 columns.
    """
    fixed = None if sys.stdout.isatty() else width
    return Console(markup=False, emoji=False, highlight=False, width=fixed)


def print_json(value: object) -> None:
    """One line of JSON on stdout, there at once also in a pipe."""
    print(json.dumps(value, separators=(",", ":")), flush=True)


def report_of(error: PageferryError | CommandError) -> dict[str, Any]:
    """The report of an error, wherever it arose."""
    if isinstance(error, PageferryError):
        return dict(error.report())
    if error.report:
        return error.report
    return {"kind": "error", "message": error.desc, "guest-state": "", "advice": ""}


def print_error(report: Mapping[str, Any]) -> None:
    """What happened, where the guest is, what to do: a line each, on stderr."""
    print(f"pageferry: {report.get('message') or 'failed'}", file=sys.stderr)
    if report.get("guest-state"):
        print(f"  guest:   {report['guest-state']}", file=sys.stderr)
    if report.get("advice"):
        print(f"  what to do: {report['advice']}", file=sys.stderr)


def size(count_bytes: float) -> str:
    """Bytes with a binary unit, three digits or so."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count_bytes) < _KIB:
            return (
                f"{count_bytes:.0f} {unit}" if unit in ("B", "KiB") else f"{count_bytes:.1f} {unit}"
            )
        count_bytes /= _KIB
    return f"{count_bytes:.2f} TiB"


def duration(count_ms: float) -> str:
    """Milliseconds as a person says them."""
    if count_ms < 1000:
        return f"{count_ms:.0f} ms" if count_ms >= 10 else f"{count_ms:.1f} ms"
    seconds = count_ms / 1000
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
