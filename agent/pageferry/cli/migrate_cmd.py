"""`pageferry migrate`: start a migration and follow it to its end."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import trio
from rich.console import Console

from pageferry.cli.exit_codes import ExitCode, of_migration
from pageferry.cli.presenting import JsonPresenter, Presenter, TerminalPresenter
from pageferry.cli.watching import reports
from pageferry.control.client import ControlClient, DaemonUnreachableError, open_client
from pageferry.control.errors import CommandError
from pageferry.control.info import MigrationInfo
from pageferry.model.parameters import COMPRESSION_MODES

SUMMARY = "carry a running guest to another host"

DESCRIPTION = """\
Carries the running guest GUEST to the agent on HOST and follows it to the end. GUEST is a name
that the daemon knows, or the path of a QMP socket on this host. On a terminal the progress is shown
live; otherwise, and with --json, there is one JSON object per line, the last one with
"event":"finished".

Ctrl-C on a terminal asks whether to cancel, to detach, or to go on; pressed again at the question
it cancels. Without a terminal SIGINT and SIGTERM cancel the migration and wait until it is. Once it
has been committed nothing can be cancelled. A hang-up detaches: the migration goes on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this verb."""
    parser.add_argument("guest", metavar="GUEST")
    parser.add_argument("uri", metavar="HOST[:PORT]")
    parser.add_argument("--destination-guest", metavar="NAME", help="the guest's name over there")
    parser.add_argument(
        "--verify", action="store_true", default=None, help="compare all memory before it may run"
    )
    parser.add_argument("--json", action="store_true", help="JSON lines, also on a terminal")
    parser.add_argument("--downtime-limit", type=int, metavar="MS", help="longest wanted downtime")
    parser.add_argument("--window", type=int, metavar="BYTES", help="page-in window")
    parser.add_argument("--channels", type=int, metavar="N", help="data connections")
    parser.add_argument(
        "--compression", choices=COMPRESSION_MODES, help="pack pages by zstd (default: off)"
    )
    parser.add_argument("--compression-level", type=int, metavar="N", help="-7 to 19 (default: 1)")
    parser.add_argument("--timeout", type=float, metavar="S", help="give up after so long")
    parser.add_argument("--detach", action="store_true", help="start it and return")


def parameters_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Migration parameters as the daemon takes them; the daemon checks their values."""
    given = {
        "verify": arguments.verify,
        "downtime-limit": arguments.downtime_limit,
        "page-in-window": arguments.window,
        "channels": arguments.channels,
        "timeout": arguments.timeout,
        "compression": arguments.compression,
        "compression-level": arguments.compression_level,
    }
    return {key: value for key, value in given.items() if value is not None}


async def run(arguments: argparse.Namespace) -> ExitCode:
    """Do it. Raises CommandError and DaemonUnreachableError."""
    presenter = _presenter(arguments)
    # Signals are ours before there is anything to interrupt: none may fall into the gap.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with open_client(arguments.socket) as client:
            migration_id = await client.migrate(
                arguments.guest,
                arguments.uri,
                destination_guest=arguments.destination_guest,
                parameters=parameters_of(arguments),
            )
            presenter.started(migration_id, arguments.guest, arguments.uri)
            if arguments.detach:
                presenter.detached(migration_id)
                return ExitCode.COMPLETED
            try:
                return await _Attached(client, migration_id, presenter).follow(signals)
            finally:
                presenter.close()


def _presenter(arguments: argparse.Namespace) -> Presenter:
    if arguments.json or not sys.stdout.isatty():
        return JsonPresenter()
    return TerminalPresenter(Console())


class _Attached:
    """Watching a migration, with the operator's signals beside."""

    def __init__(self, client: ControlClient, migration_id: str, presenter: Presenter) -> None:
        self._client = client
        self._migration_id = migration_id
        self._presenter = presenter
        self._cancelling = False
        self._scope = trio.CancelScope()

    async def follow(self, signals: AsyncIterator[int]) -> ExitCode:
        """Until the end, or until the operator detaches."""
        last: MigrationInfo | None = None
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey, signals)
            with self._scope:
                try:
                    last = await self._watch()
                except Exception as error:  # noqa: BLE001 - carried out of the nursery, unwrapped
                    failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if last is None:
            self._presenter.detached(self._migration_id)
            return ExitCode.COMPLETED
        code = of_migration(last)
        self._presenter.finished(last, code)
        return code

    async def _watch(self) -> MigrationInfo | None:
        with self._client.events() as events:
            async with aclosing(reports(self._client, self._migration_id, events)) as stream:
                async for report in stream:
                    self._presenter.report(report)
                    if isinstance(report, MigrationInfo) and report.is_final:
                        return report
        return None

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            answer = "detach"
            if number != signal.SIGHUP and not self._cancelling:
                answer = await self._ask(signals)
            if answer == "detach":
                self._scope.cancel()
            elif answer == "cancel":
                await self._cancel()

    async def _ask(self, signals: AsyncIterator[int]) -> str:
        """The operator's answer; a second Ctrl-C at the question means to cancel."""
        answer = "cancel"
        async with trio.open_nursery() as nursery:

            async def second_signal() -> None:
                await anext(signals)
                nursery.cancel_scope.cancel()

            nursery.start_soon(second_signal)
            answer = await self._presenter.asked_to_stop()
            nursery.cancel_scope.cancel()
        return answer

    async def _cancel(self) -> None:
        self._cancelling = True
        self._presenter.note("cancelling; once more detaches")
        try:
            await self._client.cancel(migration_id=self._migration_id)
        except (CommandError, DaemonUnreachableError) as error:
            self._presenter.note(str(error))
