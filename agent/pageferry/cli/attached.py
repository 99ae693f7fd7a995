"""Being attached to a running migration: watching it, with the operator's signals beside."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Final

import trio

from pageferry.cli.exit_codes import ExitCode, of_migration
from pageferry.cli.presenting import Presenter
from pageferry.cli.watching import reports
from pageferry.control.client import ControlClient, DaemonUnreachableError, open_client
from pageferry.control.errors import CommandError
from pageferry.control.info import MigrationInfo

log = logging.getLogger(__name__)

AWAY_S: Final = 10.0
"""How long a daemon may be away: systemd starts one that has crashed again after two seconds."""

AGAIN_S: Final = 0.3


async def follow(
    path: Path, client: ControlClient, attached: Attached, signals: AsyncIterator[int]
) -> ExitCode:
    """Follow to the end, or until the operator detaches; also over restarts of the daemon at
    *path*, of which a migration takes no notice either.

    Raises DaemonUnreachableError when it does not come back, or does not know the migration then.
    """
    try:
        return await attached.follow(client, signals)
    except DaemonUnreachableError as error:
        lost = error
    attached.note("the daemon went away; waiting for the next one")
    while trio.current_time() < attached.heard_at_s + AWAY_S:
        if await _is_signalled(signals, AGAIN_S):
            break
        try:
            async with open_client(path) as again:
                return await attached.follow(again, signals)
        except DaemonUnreachableError as error:
            log.debug("not yet: %s", error)
        except CommandError:
            break
    raise lost


async def _is_signalled(signals: AsyncIterator[int], timeout_s: float) -> bool:
    with trio.move_on_after(timeout_s):
        await anext(signals)
        return True
    return False


class Attached:
    """Attached to one migration, by one client after the other.

    Who *only_watches* did not start it, so that a signal without a question at a terminal is the
    watcher's end and not the migration's: a monitor that is stopped must not cancel what it sees.
    """

    def __init__(
        self,
        migration_id: str,
        presenter: Presenter,
        *,
        only_watches: bool = False,
    ) -> None:
        self.heard_at_s = trio.current_time()
        """When the daemon last said something of it."""
        self._only_watches = only_watches
        self._migration_id = migration_id
        self._presenter = presenter
        self._cancelling = False
        self._scope = trio.CancelScope()

    async def follow(self, client: ControlClient, signals: AsyncIterator[int]) -> ExitCode:
        """Until the end, or until the operator detaches. Raises CommandError and
        DaemonUnreachableError."""
        self._scope = trio.CancelScope()
        last: MigrationInfo | None = None
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey, client, signals)
            with self._scope:
                try:
                    last = await self._watch(client)
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

    def note(self, text: str) -> None:
        """A remark for who watches."""
        self._presenter.note(text)

    async def _watch(self, client: ControlClient) -> MigrationInfo | None:
        with client.events() as events:
            async with aclosing(reports(client, self._migration_id, events)) as stream:
                async for report in stream:
                    self.heard_at_s = trio.current_time()
                    self._presenter.report(report)
                    if isinstance(report, MigrationInfo) and report.is_final:
                        return report
        return None

    async def _obey(self, client: ControlClient, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            answer = "detach"
            if self._concerns_the_migration(number) and not self._cancelling:
                answer = await self._ask(signals)
            if answer == "detach":
                self._scope.cancel()
            elif answer == "cancel":
                await self._cancel(client)

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

    async def _cancel(self, client: ControlClient) -> None:
        self._cancelling = True
        self._presenter.note("cancelling; once more detaches")
        try:
            await client.cancel(migration_id=self._migration_id)
        except (CommandError, DaemonUnreachableError) as error:
            self._presenter.note(str(error))
