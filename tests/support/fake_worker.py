"""A worker that carries nothing: it says over the link what a real one would.

What it does is in the guest's name: ``slow`` runs until cancelled, ``stubborn`` too and takes no
parameters, ``die`` kills itself, ``refuse`` is refused, ``unknown`` ends with an unknown outcome,
``committed`` refuses to be cancelled until it has been asked, anything else completes after a few
reports. ``--record FILE`` appends every packet.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import trio

from pageferry.migration.link import TOKEN_VARIABLE, Link, LinkLostError
from pageferry.model.errors import (
    MigrationCancelledError,
    OutcomeUnknownError,
    PageferryError,
    RefusedError,
)

PHASES = ("look", "arm", "cold", "resident", "rounds", "switchover", "commit")


class FakeWorker:
    """One fake migration."""

    def __init__(self, link: Link, record: Path | None) -> None:
        self._link = link
        self._record = record
        self._cancelled = trio.Event()
        self._asked = trio.Event()
        self._way = ""
        self._job: dict[str, Any] = {}
        self._fds: list[int] = []

    async def run(self) -> None:
        """The job, to its end."""
        job, self._fds = await self._link.receive()
        self._job = job
        self._note(job)
        self._way = job["guest"].rsplit("/", 1)[-1].split("-")[0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey)
            error: PageferryError | None = None
            try:
                await self._work()
            except PageferryError as raised:
                error = raised
            nursery.cancel_scope.cancel()
        status = "completed" if error is None else "failed"
        if error is not None and error.kind == "cancelled":
            status = "cancelled"
        await self._link.send(
            {
                "type": "finished",
                "info": self._info(status, "done" if error is None else "rounds"),
                "error": error.report() if error else None,
                "job": self._job,
                "pid": os.getpid(),
                "token": os.environ[TOKEN_VARIABLE],
            }
        )

    async def _obey(self) -> None:
        try:
            while True:
                await self._take(*await self._link.receive())
        except LinkLostError:
            os._exit(7)  # as if it had cancelled by itself

    async def _take(self, packet: dict[str, Any], fds: list[int]) -> None:
        self._note(packet)
        if packet["type"] == "channel":
            with socket.socket(fileno=fds.pop()) as channel:
                blocking = os.get_blocking(channel.fileno())
                channel.sendall(json.dumps({"blocking": blocking}).encode())
        elif packet["type"] == "cancel":
            accepted = self._way != "committed"
            await self._link.send({"type": "cancel-answer", "accepted": accepted})
            (self._cancelled if accepted else self._asked).set()

        elif packet["type"] == "set":
            refusal = RefusedError("no", advice="do not") if self._way == "stubborn" else None
            report = refusal.report() if refusal else None
            await self._link.send({"type": "set-answer", "error": report})
        elif packet["type"] == "identify":
            await self._link.send(
                {
                    "type": "identity",
                    "pid": os.getpid(),
                    "token": os.environ[TOKEN_VARIABLE],
                    "job": self._job,
                }
            )

    async def _work(self) -> None:
        if self._way == "refuse":
            raise RefusedError("the RAM is not shared", advice="use share=on")
        for number, phase in enumerate(PHASES):
            await self._link.send({"type": "status", "info": self._info("active", phase)})
            await self._link.send(
                {"type": "event", "event": "MIGRATION_PASS", "data": {"pass": number}}
            )
            if self._way == "die" and phase == "resident":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._way in ("slow", "stubborn") and phase == "resident":
                await self._cancelled.wait()
                raise MigrationCancelledError("cancelled", guest_state="runs on the source")
            if self._way == "committed" and phase == "commit":
                await self._asked.wait()
        if self._way == "unknown":
            raise OutcomeUnknownError("lost the other agent", advice="pageferry recover")

    def _info(self, status: str, phase: str) -> dict[str, Any]:
        return {
            "status": status,
            "phase": phase,
            "total-time": 1234,
            "downtime": 12.5,
            "ram": {
                "transferred": 1 << 20,
                "remaining": 0,
                "total": 1 << 21,
                "dirty-sync-count": 2,
            },
            "residency": {"cold-bytes": 4096, "paged-in-bytes": 4096, "paged-out-bytes": 4096},
            "progress": {"phase-done-bytes": 50, "phase-total-bytes": 100},
        }

    def _note(self, packet: dict[str, Any]) -> None:
        if self._record is not None:
            session = {"pid": os.getpid(), "pgid": os.getpgid(0), "fds": len(self._fds)}
            with self._record.open("a") as file:
                file.write(json.dumps({**packet, "worker": session}) + "\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--link-fd", type=int, required=True)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()

    async def run() -> None:
        try:
            await FakeWorker(Link(socket.socket(fileno=arguments.link_fd)), arguments.record).run()
        except* LinkLostError:
            os._exit(7)  # the daemon went away while something was said

    trio.run(run)


if __name__ == "__main__":
    main()
