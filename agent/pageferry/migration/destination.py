"""The destination's side of one migration: receive the RAM, load the devices, wait for the commit.

The guest can run here only after ``committed`` is in the journal, which is only written when the
source said Commit. Everything else that ends the connection ends the migration: ``aborted`` is
written, QEMU is made unable to run the guest, and only then does the source hear Aborted.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

import trio

from pageferry import __version__
from pageferry.kernel.cgroup import memory_cgroup_of
from pageferry.kernel.residency import choose_reader
from pageferry.migration.acceptance import refuse_mismatch
from pageferry.migration.arrival import GOODBYE_S
from pageferry.migration.cancellation import Cancellation
from pageferry.migration.guest_ram import CarriedBlock, guest_ram, refuse, refuse_other_users
from pageferry.migration.inflow import Inflow
from pageferry.migration.job import DestinationJob
from pageferry.migration.journal import Journal
from pageferry.migration.outcome import explained
from pageferry.migration.peer import Peer, open_peer
from pageferry.migration.progress import Progress
from pageferry.migration.reception import Reception
from pageferry.model.errors import MigrationCancelledError, PageferryError, RefusedError
from pageferry.net.control import ControlStream
from pageferry.net.data import tune
from pageferry.qemu.look import look
from pageferry.qemu.monitor import open_monitor
from pageferry.wire.messages import Describe, HelloReply, Refuse
from pageferry.wire.session import Exchange, Role


class DestinationMigration:
    """One migration on its destination. `run` once; `attach` and `cancel` from the same trio
    thread."""

    def __init__(self, job: DestinationJob, control_fd: int) -> None:
        self.job = job
        self.progress = Progress(job.migration_id, job.guest, time.monotonic_ns())
        self._control_fd = control_fd
        self._inflow: Inflow | None = None
        self._cancellation = Cancellation()

    def attach(self, fd: int, channel: int, token: bytes) -> None:
        """Take over a data connection's descriptor; it is closed when it does not belong here."""
        sock = socket.socket(fileno=fd)
        sock.setblocking(True)
        if self._inflow is None or not self._inflow.attach(sock, channel, token):
            sock.close()

    def cancel(self) -> bool:
        """Give up, unless the source has committed: then nothing happens and the answer is
        False."""
        return self._cancellation.request()

    async def run(self) -> None:
        """Receive the guest. Returns when it runs here (or is paused here, as it was).

        Raises RefusedError when it was not taken, OutcomeUnknownError when QEMU cannot say whether
        it runs, another PageferryError when the migration ended before the commit.
        """
        exchange = Exchange(Role.DESTINATION)
        exchange.receive(self.job.hello())
        sock = socket.socket(fileno=self._control_fd)
        sock.setblocking(False)
        tune(sock)
        stream = ControlStream(trio.SocketStream(trio.socket.from_stdlib_socket(sock)), exchange)
        journal = Journal.create(self.job.state_dir, self.job.migration_id, "destination")
        try:
            async with open_peer(stream) as peer:
                with self._cancellation.scope:
                    await self._receive(journal, peer)
                if self._cancellation.came_first:
                    raise MigrationCancelledError(
                        "the migration was cancelled", guest_state="with its source"
                    )
        except Exception as error:
            raise explained(error) from error
        finally:
            self.progress.finished_ns = time.monotonic_ns()
            journal.close()

    async def _receive(self, journal: Journal, peer: Peer) -> None:
        try:
            version = self.job.version()
            await peer.send(HelloReply(version=version, agent=f"pageferry {__version__}"))
            described = await peer.expect(Describe)
            async with open_monitor(self.job.qmp) as monitor:
                view = await look(monitor)
                refuse(view, "destination")
                refuse_mismatch(described, view)
                reader = await trio.to_thread.run_sync(choose_reader, None)
                async with guest_ram(monitor.peer_pid, view, writable=True) as opened:
                    blocks = _in_order(opened, described)
                    pid = monitor.peer_pid
                    await trio.to_thread.run_sync(refuse_other_users, pid, blocks)
                    await trio.to_thread.run_sync(memory_cgroup_of(pid).join, os.getpid())
                    reception = Reception(
                        job=self.job,
                        described=described,
                        journal=journal,
                        monitor=monitor,
                        peer=peer,
                        blocks=blocks,
                        reader=reader,
                        progress=self.progress,
                        announce=self._announce,
                        begin_commit=self._cancellation.begin_commit,
                    )
                    await reception.run()
        except RefusedError as error:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_S):
                await self._say_refused(peer, error)
            raise

    async def _say_refused(self, peer: Peer, error: RefusedError) -> None:
        try:
            await peer.send(Refuse(message=error.message, advice=error.advice))
            await peer.raise_when_failed()
        except PageferryError:
            return

    def _announce(self, inflow: Inflow) -> None:
        self._inflow = inflow


def _in_order(opened: Sequence[CarriedBlock], described: Describe) -> list[CarriedBlock]:
    """The blocks in the order of the source, by which frames name them."""
    by_name = {carried.block.name: carried for carried in opened}
    return [by_name[name] for name, _length_bytes in described.blocks]
