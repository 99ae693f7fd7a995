"""One QMP connection to QEMU, for trio. The only module that crosses to asyncio (qemu.qmp).

A command that was sent is carried out whether or not its sender still waits, so a cancelled command
would have an unknown outcome. Commands are therefore never cancelled: each has a deadline of its
own and is waited for in a shield, and the cancellation takes effect right after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio
import trio_asyncio
from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from pageferry.model.errors import QemuError

COMMAND_TIMEOUT_S = 10.0
"""QEMU answers in milliseconds unless its main loop is stuck, in storage mostly."""

MAX_PENDING_EVENTS = 1000

Event = tuple[str, dict[str, Any], int]
"""An event's name, data, and time in microseconds since the epoch, by QEMU's clock."""


class Monitor:
    """An open QMP connection; made by `open_monitor`. Any number of tasks may use it."""

    def __init__(self, client: QMPClient, path: str, peer_pid: int) -> None:
        self.path = path
        self.peer_pid = peer_pid
        """The process that listens on the socket: QEMU itself, unless someone handed it over."""
        self._client = client
        self._command_lock = trio.Lock()
        self._subscribers: set[trio.MemorySendChannel[Event]] = set()
        self._lost = False

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> Any:
        """What QEMU returns. Raises QemuError when it refuses, does not answer in time, or is gone.

        After a cancellation the command has been carried out, or has failed, whole. After a
        time-out its outcome is unknown and the connection is given up.
        """
        async with self._command_lock:
            return await self._execute(command, dict(arguments or {}), timeout_s)

    async def send_fd(self, name: str, fd: int) -> None:
        """Hand QEMU a duplicate of *fd* under *name*, for an ``fd:NAME`` address. Raises
        QemuError."""
        async with self._command_lock:
            self._check_connected("getfd")
            try:
                self._client.send_fd_scm(fd)
            except (OSError, QMPError) as error:
                raise self._gone("getfd", error) from error
            await self._execute("getfd", {"fdname": name}, COMMAND_TIMEOUT_S)

    async def human(self, line: str) -> str:
        """The text that the human monitor's command *line* prints."""
        return str(await self.execute("human-monitor-command", {"command-line": line}))

    @contextmanager
    def events(self) -> Iterator[trio.MemoryReceiveChannel[Event]]:
        """All events from entry on; subscribe before issuing the command that causes them.

        The channel ends when the connection does.
        """
        send, receive = trio.open_memory_channel[Event](MAX_PENDING_EVENTS)
        self._subscribers.add(send)
        if self._lost:
            send.close()
        try:
            yield receive
        finally:
            self._subscribers.discard(send)
            send.close()
            receive.close()

    async def _execute(self, command: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        self._check_connected(command)
        try:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + timeout_s) as scope:
                return await trio_asyncio.aio_as_trio(self._client.execute)(command, arguments)
        except ExecuteError as error:
            raise refused(command, error) from error
        except (QMPError, OSError, EOFError) as error:
            raise self._gone(command, error) from error
        if scope.cancelled_caught:
            self._lost = True
            raise QemuError(
                f"QEMU did not answer {command} within {timeout_s:g} s, so what became of it is not"
                " known",
                advice=f"look at what QEMU's main loop waits for, storage most often ({self.path})",
            )
        raise AssertionError("unreachable")

    def _check_connected(self, command: str) -> None:
        if self._lost:
            raise self._gone(command, None)

    def _gone(self, command: str, error: BaseException | None) -> QemuError:
        self._lost = True
        return QemuError(
            f"QEMU is gone, or closed its monitor {self.path} ({command})"
            + (f": {error}" if error and str(error) else ""),
            advice="check whether the QEMU process still runs, and its log",
        )

    def _publish(self, event: Event) -> None:
        for subscriber in self._subscribers:
            # Closed: the connection's end was noticed while its last events were still queued.
            with contextlib.suppress(
                trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError
            ):
                subscriber.send_nowait(event)

    def _end(self) -> None:
        self._lost = True
        for subscriber in self._subscribers:
            subscriber.close()


def refused(command: str, error: ExecuteError) -> QemuError:
    """QEMU's refusal of a command; ``error_class`` is QAPI's."""
    wrapped = QemuError(f"QEMU refuses {command}: {error.error.error.desc}")
    wrapped.error_class = error.error.error.class_
    return wrapped


@asynccontextmanager
async def open_monitor(
    path: str, *, timeout_s: float = COMMAND_TIMEOUT_S
) -> AsyncIterator[Monitor]:
    """Connect to the QMP socket at *path*.

    Raises QemuError when nobody listens, or nobody answers within *timeout_s*: QEMU serves one
    client at a time on a socket, and lets a second one wait for good. What the block raises comes
    out as it is.
    """
    raised: Exception | None = None
    sock, pid = _connect(path)
    async with trio_asyncio.open_loop():
        client = QMPClient("pageferry")
        try:
            await _greet(client, sock, path, timeout_s)
            monitor = Monitor(client, path, pid)
            # Also while the block is being cancelled: it may still have to wait for QEMU's end.
            until_left = [trio.CancelScope(shield=True), trio.CancelScope(shield=True)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_within, until_left[0], _pump_events, monitor, client)
                nursery.start_soon(_within, until_left[1], _notice_end, monitor, client)
                try:
                    yield monitor
                except Exception as error:  # noqa: BLE001 - nurseries would wrap it in groups
                    raised = error
                finally:
                    for scope in until_left:
                        scope.cancel()
        except QemuError as error:
            raised = error
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                await _disconnect(client)
            sock.close()
    if raised is not None:
        raise raised


def _connect(path: str) -> tuple[socket.socket, int]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    try:
        sock.connect(path)
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError as error:
        sock.close()
        # EAGAIN: the queue of a listening UNIX socket is full, so nobody has accepted for long.
        raise QemuError(
            f"no QMP monitor answers at {path}: {error.strerror}",
            advice="check that QEMU runs with -qmp unix:PATH,server=on,wait=off, and the path",
        ) from error
    return sock, struct.unpack("3i", credentials)[0]


async def _greet(client: QMPClient, sock: socket.socket, path: str, timeout_s: float) -> None:
    try:
        with trio.fail_after(timeout_s):
            await trio_asyncio.aio_as_trio(client.connect)(sock)
    except trio.TooSlowError as error:
        raise QemuError(
            f"QEMU does not greet on {path}: another client is probably connected to it",
            advice="give pageferry a QMP socket of its own: another -qmp unix:…,server=on,wait=off",
        ) from error
    except (QMPError, OSError) as error:
        raise QemuError(
            f"{path} is not a QMP monitor, or its QEMU has just ended: {error}",
            advice="check the path, that the QEMU process still runs, and its log",
        ) from error


async def _within(
    scope: trio.CancelScope,
    task: Callable[[Monitor, QMPClient], Awaitable[None]],
    monitor: Monitor,
    client: QMPClient,
) -> None:
    with scope:
        await task(monitor, client)


async def _pump_events(monitor: Monitor, client: QMPClient) -> None:
    listener = EventListener()
    client.register_listener(listener)
    get = trio_asyncio.aio_as_trio(listener.get)
    while True:
        message = await get()
        time = message.get("timestamp") or {}
        microseconds = int(time.get("seconds", 0)) * 1_000_000 + int(time.get("microseconds", 0))
        monitor._publish((str(message["event"]), dict(message.get("data") or {}), microseconds))


async def _notice_end(monitor: Monitor, client: QMPClient) -> None:
    """QEMU's closing the connection ends all subscriptions."""

    async def closed() -> None:
        while client.runstate.name == "RUNNING":
            await client.runstate_changed()

    await trio_asyncio.aio_as_trio(closed)()
    monitor._end()


async def _disconnect(client: QMPClient) -> None:
    with contextlib.suppress(QMPError, OSError, EOFError, asyncio.CancelledError):
        await trio_asyncio.aio_as_trio(client.disconnect)()
