"""What `pageferry migrate` shows while it is attached: a live picture, or JSON lines."""

from __future__ import annotations

import os
import sys
from typing import Protocol

import trio
from rich.console import Console

from pageferry.cli.display import LiveDisplay
from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.output import console, duration, print_error, print_json, size
from pageferry.control.info import Event, MigrationInfo

QUESTION = "Cancel the migration? [y]es, [d]etach and let it run, [n]o: "


class Presenter(Protocol):
    """Shows one migration. Everything is called from one trio thread."""

    def started(self, migration_id: str, guest: str, destination: str) -> None:
        """It has begun."""

    def report(self, report: MigrationInfo | Event) -> None:
        """Something was reported."""

    @property
    def can_ask(self) -> bool:
        """Whether somebody is there to answer `asked_to_stop`."""

    async def asked_to_stop(self) -> str:
        """The operator pressed Ctrl-C: ``cancel``, ``detach`` or ``go-on``."""

    def note(self, text: str) -> None:
        """A remark."""

    def detached(self, migration_id: str) -> None:
        """Left while the migration goes on."""

    def finished(self, info: MigrationInfo, code: ExitCode) -> None:
        """The end."""

    def close(self) -> None:
        """Give the terminal back, however it ended."""


class JsonPresenter:
    """JSON lines on stdout, each with a key ``event``. Nobody can be asked: Ctrl-C cancels."""

    def __init__(self) -> None:
        self._last: object = None

    def started(self, migration_id: str, guest: str, destination: str) -> None:
        print_json(
            {
                "event": "started",
                "migration-id": migration_id,
                "guest": guest,
                "destination": destination,
            }
        )

    def report(self, report: MigrationInfo | Event) -> None:
        if isinstance(report, Event):
            line = {"event": report.name, "data": dict(report.data)}
            print_json({**line, "timestamp-us": report.timestamp_us})
        elif not report.is_final and report.raw != self._last:
            self._last = report.raw
            print_json({"event": "status", "info": dict(report.raw)})

    @property
    def can_ask(self) -> bool:
        return False

    async def asked_to_stop(self) -> str:
        return "cancel"

    def note(self, text: str) -> None:
        print_json({"event": "note", "message": text})

    def detached(self, migration_id: str) -> None:
        print_json({"event": "detached", "migration-id": migration_id})

    def finished(self, info: MigrationInfo, code: ExitCode) -> None:
        print_json(
            {
                "event": "finished",
                "status": info.status,
                "exit-status": code.value,
                "info": dict(info.raw),
                "error": dict(info.error) or None,
            }
        )

    def close(self) -> None:
        """Nothing was taken."""


class TerminalPresenter:
    """A live picture; questions are asked below it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._display = LiveDisplay(console)

    def started(self, migration_id: str, guest: str, destination: str) -> None:
        self._console.print(f"migration {migration_id}: {guest} to {destination}")
        self._display.start()

    def report(self, report: MigrationInfo | Event) -> None:
        if isinstance(report, MigrationInfo):
            self._display.show(report)

    @property
    def can_ask(self) -> bool:
        return sys.stdin.isatty()

    async def asked_to_stop(self) -> str:
        """Cancellable at the prompt; the terminal is then as before."""
        if not self.can_ask:
            return "cancel"
        self._display.stop()
        try:
            self._console.print(QUESTION, end="")
            await trio.lowlevel.wait_readable(sys.stdin.fileno())
            answer = os.read(sys.stdin.fileno(), 1024).decode(errors="replace").strip().lower()
        finally:
            self._display.start()
        return {"y": "cancel", "d": "detach"}.get(answer[:1], "go-on")

    def note(self, text: str) -> None:
        self._console.print(text)

    def detached(self, migration_id: str) -> None:
        self._display.stop()
        self._console.print(f"detached; it goes on: pageferry watch {migration_id}")

    def finished(self, info: MigrationInfo, code: ExitCode) -> None:
        self.report(info)
        self._display.stop()
        if code is ExitCode.COMPLETED:
            self._console.print(summary(info))
        else:
            print_error(info.error or {"message": f"the migration has {info.status}"})

    def close(self) -> None:
        """Give the terminal back, however it ended."""
        self._display.stop()


def presenter_for(*, as_json: bool) -> Presenter:
    """A live picture on a terminal, else JSON lines."""
    if as_json or not sys.stdout.isatty():
        return JsonPresenter()
    return TerminalPresenter(console())


def summary(info: MigrationInfo) -> str:
    """A completed migration in one sentence."""
    sent = "received" if info.role == "destination" else "sent"
    text = (
        f"{info.guest} runs on {info.destination or 'this host'}:"
        f" {size(info.transferred_bytes)} {sent} in"
        f" {duration(info.total_time_ms)}, {info.rounds} rounds"
    )
    if info.downtime_ms is not None:
        text += f", downtime {duration(info.downtime_ms)}"
    if info.cold_bytes:
        text += f"; {size(info.cold_bytes)} were cold, {size(info.paged_in_bytes)} paged in"
    if info.verified:
        text += "; all memory verified"
    return text
