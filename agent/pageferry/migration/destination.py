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
from pageferry.migration.following import completed_launch
from pageferry.migration.guest_ram import CarriedBlock, guest_ram, refuse, refuse_other_users
from pageferry.migration.inflow import Inflow
from pageferry.migration.job import DestinationJob
from pageferry.migration.journal import Journal
from pageferry.migration.launching import Launching, waiting_qemu
from pageferry.migration.outcome import explained
from pageferry.migration.peer import Peer, open_peer
from pageferry.migration.progress import Progress
from pageferry.migration.reception import Reception
from pageferry.model.errors import (
    MigrationCancelledError,
    PageferryError,
    PeerLostError,
    RefusedError,
)
from pageferry.net.control import ControlStream
from pageferry.net.data import DataSocket, TlsSocket, tune
from pageferry.net.handing_over import SecondSession
from pageferry.net.streams import tls_stream
from pageferry.net.tls import TlsContext
from pageferry.qemu.look import look
from pageferry.qemu.monitor import open_monitor
from pageferry.wire.messages import Describe, HelloReply, Refuse
from pageferry.wire.session import Exchange, Role

TLS_TIMEOUT_S = 30.0
"""The source begins as soon as the daemon has handed the connection over."""


class DestinationMigration:
    """One migration on its destination. `run` once; `attach` and `cancel` from the same trio
    thread."""

    def __init__(self, job: DestinationJob, control_fd: int) -> None:
        self.job = job
        self.progress = Progress(job.migration_id, job.guest, time.monotonic_ns())
        self._control_fd = control_fd
        self._inflow: Inflow | None = None
        self._tls_context: TlsContext | None = None
        self._cancellation = Cancellation()
        self._is_taken_in = False

    def attach(self, fd: int, channel: int, token: bytes, tls: SecondSession | None) -> None:
        """Take over a data connection's descriptor; it is closed when it does not belong here.

        *tls* is what its second session needs; None where it is not encrypted.
        """
        sock = socket.socket(fileno=fd)
        sock.setblocking(True)
        data = self._data_socket(sock, tls)
        if self._inflow is None or data is None or not self._inflow.attach(data, channel, token):
            sock.close()

    def _data_socket(self, sock: socket.socket, tls: SecondSession | None) -> DataSocket | None:
        """None when it is not encrypted as the control connection is, or with another peer."""
        if tls is None or self.job.tls is None:
            return sock if tls is self.job.tls else None
        if self._tls_context is None or tls.fingerprint != self.job.tls.fingerprint:
            return None
        peer = f"data connection from {self.job.guest}'s source"
        return TlsSocket(
            sock, self._tls_context, tls.protocol, peer=peer, host=None, check=tls.check
        )

    def cancel(self) -> bool:
        """Give up, unless the source has committed: then nothing happens and the answer is
        False."""
        return self._cancellation.request()

    async def run(self) -> None:
        """Receive the guest. Returns when it runs here (or is paused here, as it was).

        Raises RefusedError when it was not taken, OutcomeUnknownError when QEMU cannot say whether
        it runs, another PageferryError when the migration ended before the commit.
        """
        stream = await self._control_stream()
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

    async def _control_stream(self) -> ControlStream:
        """The connection on which the daemon has read Hello; with TLS its second session begins."""
        exchange = Exchange(Role.DESTINATION)
        exchange.receive(self.job.hello())
        sock = socket.socket(fileno=self._control_fd)
        sock.setblocking(False)
        tune(sock)
        tls = self.job.tls
        if tls is None:
            plain = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            return ControlStream(plain, exchange)
        self._tls_context = tls.context()
        stream = tls_stream(self._tls_context, sock, tls.protocol, "the source")
        try:
            with trio.fail_after(TLS_TIMEOUT_S):
                await stream.handshake()
            tls.check(stream.session.peer())
        except BaseException as error:
            await trio.aclose_forcefully(stream)
            if isinstance(error, OSError | trio.TooSlowError):
                raise PeerLostError(
                    f"the source ended the connection while TLS began: {str(error) or 'no answer'}",
                    guest_state="with its source",
                ) from error
            raise
        return ControlStream(stream, exchange)

    async def _receive(self, journal: Journal, peer: Peer) -> None:
        try:
            version = self.job.version()
            job = self.job
            follows = job.launch is not None and job.launch.follows_source
            await peer.send(
                HelloReply(
                    version=version, agent=f"pageferry {__version__}", wants_command_line=follows
                )
            )
            described = await peer.expect(Describe)
            launch = completed_launch(job.launch, described.command_line, job.guest, job.qmp)
            async with waiting_qemu(
                launch, job.qmp, job.guest, job.state_dir, job.migration_id
            ) as qemu:
                await self._receive_into(qemu, journal, peer, described)
        except Exception as error:
            reason = explained(error)
            # Whatever went wrong before it was taken in is a refusal, and told as one.
            if not self._is_taken_in or isinstance(reason, RefusedError):
                with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_S):
                    await self._say_refused(peer, reason)
            raise

    async def _receive_into(
        self, qemu: Launching, journal: Journal, peer: Peer, described: Describe
    ) -> None:
        """Take the guest in where a QEMU waits for it."""
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
                    qemu=qemu,
                )
                self._is_taken_in = True
                await reception.run()

    async def _say_refused(self, peer: Peer, error: PageferryError) -> None:
        try:
            await peer.send(Refuse(message=error.message[:1000], advice=error.advice[:1000]))
            await peer.raise_when_failed()
        except PageferryError:
            return

    def _announce(self, inflow: Inflow) -> None:
        self._inflow = inflow


def _in_order(opened: Sequence[CarriedBlock], described: Describe) -> list[CarriedBlock]:
    """The blocks in the order of the source, by which frames name them."""
    by_name = {carried.block.name: carried for carried in opened}
    return [by_name[name] for name, _length_bytes in described.blocks]
