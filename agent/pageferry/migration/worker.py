"""The worker process: one side of one migration, with a process of its own.

Started by pageferryd as ``python -m pageferry.migration.worker --link-fd N``. It gets its job over
the link, reports status and end over it, and cancels by itself when the daemon is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, Protocol

import trio

from pageferry.kernel.scheduling import be_considerate
from pageferry.logs import log_context, set_up_logging
from pageferry.migration.destination import DestinationMigration
from pageferry.migration.job import DestinationJob, SourceJob
from pageferry.migration.link import TOKEN_VARIABLE, Link, LinkLostError
from pageferry.migration.outbox import Outbox
from pageferry.migration.outcome import explained
from pageferry.migration.progress import Progress
from pageferry.migration.source import SourceMigration
from pageferry.model.errors import PageferryError, RefusedError
from pageferry.net.handing_over import SecondSession

log = logging.getLogger("pageferry.worker")

STATUS_INTERVAL_S = 0.2

SPARE, AT_WORK = "pageferry-spare", "pageferry-work"
"""What the process is called in ps and top, before and after it has its job."""

LAST_WORD_S = 600.0
"""How long to wait for a daemon that reads the last word; the journal has it in any case."""


class Migration(Protocol):
    """What both sides have in common here."""

    progress: Progress

    async def run(self) -> None: ...

    def cancel(self) -> bool: ...


class Worker:
    """Runs one migration and talks to the daemon about it.

    The daemon may be restarted meanwhile: the link stays open as long as somebody holds its other
    end (systemd does, see the daemon's handover), and the next daemon asks who we are.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._outbox = Outbox(link)
        self._job: dict[str, Any] = {}

    async def run(self) -> int:
        """Do the job that comes first on the link. Returns the process's exit status."""
        _call_oneself(SPARE)
        try:
            self._job, fds = await self._link.receive()
        except LinkLostError:
            return 0  # never needed
        _call_oneself(AT_WORK)
        context = log_context(
            migration_id=self._job["migration-id"],
            guest=self._job["guest"],
            role=self._job["role"],
        )
        with context:
            return await self._work(self._migration(self._job, fds))

    async def _work(self, migration: Migration) -> int:
        error: PageferryError | None = None
        async with trio.open_nursery() as talking:
            talking.start_soon(self._outbox.run)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, migration)
                nursery.start_soon(self._obey_signals, migration)
                nursery.start_soon(self._report, migration.progress)
                try:
                    await migration.run()
                except Exception as raised:
                    error = explained(raised)
                    log.info("ended: %s", error.message, exc_info=raised)
                nursery.cancel_scope.cancel()
            await self._finish(migration.progress, error)
            talking.cancel_scope.cancel()
        return 1 if error else 0

    def _migration(self, packet: dict[str, Any], fds: list[int]) -> Migration:
        if packet["role"] == "source":
            # Not on the destination: what it starts, a QEMU perhaps, would be like that for good.
            be_considerate()
            return SourceMigration(SourceJob.from_packet(packet), self._report_pass)
        return DestinationMigration(DestinationJob.from_packet(packet), fds[0])

    async def _obey(self, migration: Migration) -> None:
        """Do what the daemon says, until it is gone for good: then cancel, as an operator would."""
        while True:
            try:
                packet, fds = await self._link.receive()
            except LinkLostError:
                self._outbox.lose()
                migration.cancel()
                return
            kind = packet.get("type")
            if kind == "cancel":
                self._outbox.say({"type": "cancel-answer", "accepted": migration.cancel()})
            elif kind == "set":
                self._set(migration, packet["parameters"])
            elif kind == "identify":
                self._outbox.say({"type": "identity", **_oneself(), "job": self._job})
            elif kind == "channel" and isinstance(migration, DestinationMigration) and fds:
                token = bytes.fromhex(packet["token"])
                tls = SecondSession.from_packet(packet.get("tls"))
                migration.attach(fds.pop(), int(packet["channel"]), token, tls)
            for fd in fds:
                os.close(fd)

    async def _obey_signals(self, migration: Migration) -> None:
        """The system is going down, or somebody ends us by hand: leave the guest where it is."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                accepted = migration.cancel()
                log.warning(
                    "%s: %s",
                    signal.Signals(number).name,
                    "cancelling" if accepted else "committed already, ending it",
                )

    def _set(self, migration: Migration, values: dict[str, Any]) -> None:
        error: PageferryError | None = None
        try:
            if not isinstance(migration, SourceMigration):
                raise RefusedError(
                    "a migration's parameters are its source's",
                    advice="set them on the host that the guest comes from",
                )
            migration.set_parameters(values)
            self._job = {**self._job, "parameters": {**self._job.get("parameters", {}), **values}}
        except PageferryError as refused:
            error = refused
        self._outbox.say({"type": "set-answer", "error": error.report() if error else None})

    async def _report(self, progress: Progress) -> None:
        last_status = ""
        while True:
            info = progress.info(time.monotonic_ns())
            self._outbox.report({"type": "status", "info": info})
            if info["status"] != last_status:
                last_status = info["status"]
                self._event("MIGRATION", {"status": last_status})
            await trio.sleep(STATUS_INTERVAL_S)

    async def _report_pass(self, number: int) -> None:
        self._event("MIGRATION_PASS", {"pass": number})

    def _event(self, name: str, data: dict[str, Any]) -> None:
        self._outbox.say({"type": "event", "event": name, "data": data})

    async def _finish(self, progress: Progress, error: PageferryError | None) -> None:
        if error is not None:
            progress.status = "cancelled" if error.kind == "cancelled" else "failed"
            progress.error = error.report()
        info = progress.info(time.monotonic_ns())
        self._event("MIGRATION", {"status": info["status"]})
        report = error.report() if error else None
        self._outbox.say(
            {
                "type": "finished",
                "info": info,
                "error": report,
                "job": self._job,
                **_oneself(),
            }
        )
        with trio.move_on_after(LAST_WORD_S):
            await self._outbox.emptied()


def _oneself() -> dict[str, Any]:
    """By what the daemon knows this process again."""
    return {"pid": os.getpid(), "token": os.environ.get(TOKEN_VARIABLE, "")}


def _call_oneself(name: str) -> None:
    # At most 15 bytes (proc(5), /proc/PID/comm); nothing depends on it.
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def main() -> int:
    """Entry point of the worker process."""
    parser = argparse.ArgumentParser(prog="pageferry-worker")
    parser.add_argument("--link-fd", type=int, required=True)
    arguments = parser.parse_args()
    set_up_logging("pageferry-worker")

    async def run() -> int:
        link = Link(socket.socket(fileno=arguments.link_fd))
        try:
            return await Worker(link).run()
        finally:
            link.close()

    return trio.run(run)


def _end(status: int) -> NoReturn:
    """Without taking the interpreter apart: the daemon would wait for that, and with it whoever
    wants to hear that the migration is over. All that matters is on disk and said.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _end(main())
