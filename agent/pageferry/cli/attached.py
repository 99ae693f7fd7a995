"""Being attached to a running migration: watching it, with the operator's signals beside."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import aclosing

import trio

from pageferry.cli.exit_codes import ExitCode, of_migration
from pageferry.cli.presenting import Presenter
from pageferry.cli.watching import reports
from pageferry.control.client import ControlClient, DaemonUnreachableError
from pageferry.control.errors import CommandError
from pageferry.control.info import MigrationInfo


class Attached:
    """One attachment. `follow` once.

    Who *only_watches* did not start it, so that a signal without a question at a terminal is the
    watcher's end and not the migration's: a monitor that is stopped must not cancel what it sees.
    """

    def __init__(
        self,
        client: ControlClient,
        migration_id: str,
        presenter: Presenter,
        *,
        only_watches: bool = False,
    ) -> None:
        self._only_watches = only_watches
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
            if self._concerns_the_migration(number) and not self._cancelling:
                answer = await self._ask(signals)
            if answer == "detach":
                self._scope.cancel()
            elif answer == "cancel":
                await self._cancel()

    def _concerns_the_migration(self, number: int) -> bool:
        if self._only_watches:
            return number == signal.SIGINT and self._presenter.can_ask
        return number != signal.SIGHUP

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
