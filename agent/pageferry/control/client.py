"""A client of the control socket for trio; `sync_client` is the same without trio.

    async with open_client() as client:
        migration_id = await client.migrate("web1", "host-b", parameters={"downtime-limit": 100})
        print((await client.wait(migration_id)).status)

`calls` has each command's arguments and what it answers, `info` the types of answers.

One connection, any number of tasks: replies find their caller by ``id``. Cancelling a call does not
take the command back, since the daemon has read it already; what it did shows in query-migrate.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import trio

from pageferry.control import calls, jsonstream
from pageferry.control.calls import Call
from pageferry.control.errors import GENERIC_ERROR, CommandError
from pageferry.control.info import Event, MigrationInfo, event_of
from pageferry.model.errors import PageferryError

log = logging.getLogger(__name__)

DEFAULT_SOCKET: Final = Path("/run/pageferry/control.sock")

MAX_REPLY_BYTES: Final = 16 << 20
"""Longest answer taken from the daemon; the longest, query-migrate of all, is a few KiB a guest."""


class DaemonUnreachableError(PageferryError):
    """The control socket cannot be reached, or ended. Migrations go on without their watchers."""

    kind = "unreachable"


WAIT_POLL_S: Final = 5.0

P = ParamSpec("P")
T = TypeVar("T")


def _method(
    make: Callable[P, Call[T]],
) -> Callable[Concatenate[ControlClient, P], Coroutine[Any, Any, T]]:
    """A method that runs the call that *make* makes, with its arguments and its docstring."""

    @wraps(make)
    async def method(client: ControlClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client.ask(make(*args, **kwargs))

    return method


class ControlClient:
    """A negotiated connection, made by `open_client`. Its calls raise CommandError when the daemon
    refuses, and DaemonUnreachableError when it went away."""

    def __init__(self, stream: trio.abc.Stream, path: Path) -> None:
        self.version: Mapping[str, Any] = {}
        self._stream = stream
        self._path = path
        self._splitter = jsonstream.JsonSplitter(MAX_REPLY_BYTES)
        self._lock = trio.Lock()
        self._last_id = 0
        self._calls: dict[int, _Call] = {}
        self._subscribers: set[trio.MemorySendChannel[Event]] = set()
        self._lost = False

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a command, return its answer. After a cancellation it may have been run, or not."""
        self._last_id += 1
        call_id, call = self._last_id, _Call()
        request: dict[str, Any] = {"execute": command, "id": call_id}
        if arguments:
            request["arguments"] = without_none(arguments)
        text = encoded(request)
        if self._lost:
            raise gone(self._path)
        self._calls[call_id] = call
        try:
            await self._send(text)
            await call.answered.wait()
        finally:
            del self._calls[call_id]
        if call.reply is None:
            raise gone(self._path)
        if "error" in call.reply:
            error = call.reply["error"]
            raise CommandError(
                error.get("desc", "?"), error.get("class", GENERIC_ERROR), error.get("report")
            )
        return call.reply.get("return")

    @contextmanager
    def events(self) -> Iterator[trio.MemoryReceiveChannel[Event]]:
        """All events from entry on. The channel ends when the daemon goes away."""
        send, receive = trio.open_memory_channel[Event](math.inf)
        self._subscribers.add(send)
        try:
            if self._lost:
                send.close()
            yield receive
        finally:
            self._subscribers.discard(send)
            send.close()
            receive.close()

    async def wait(self, migration_id: str) -> MigrationInfo:
        """Wait until a migration is over; returns its last state."""
        with self.events() as events:
            while True:
                info = await self.query_migrate(migration_id=migration_id)
                if info.is_final:
                    return info
                # An event says when to look again; the time limit is for one that was missed.
                with trio.move_on_after(WAIT_POLL_S):
                    async for event in events:
                        if event.name == "MIGRATION":
                            break

    async def ask(self, call: Call[T]) -> T:
        """Run a call of `calls`."""
        return call.parse(await self.execute(call.command, call.arguments))

    status = _method(calls.status)
    migrate = _method(calls.migrate)
    cancel = _method(calls.cancel)
    query_migrate = _method(calls.query_migrate)
    query_migrations = _method(calls.query_migrations)
    query_guests = _method(calls.query_guests)
    history = _method(calls.history)
    set_parameters = _method(calls.set_parameters)
    parameters = _method(calls.parameters)
    residency = _method(calls.residency)
    estimate = _method(calls.estimate)
    doctor = _method(calls.doctor)
    recover = _method(calls.recover)

    async def _send(self, text: bytes) -> None:
        try:
            async with self._lock:
                # A command sent in part would spoil the stream for the other tasks.
                with trio.CancelScope(shield=True):
                    await self._stream.send_all(text)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise gone(self._path) from error

    async def _negotiate(self) -> None:
        try:
            self.version = version_of(await self._receive(), self._path)
            await self._send(encoded({"execute": "qmp_capabilities", "id": 0}))
            _ = (await self._receive())["return"]
        except (ValueError, KeyError, TypeError, jsonstream.TooLongError) as error:
            raise stranger(self._path) from error

    async def _receive(self) -> dict[str, Any]:
        """One message, before the reader runs; the daemon sends nothing unasked till then."""
        while data := await self._stream.receive_some():
            for text in self._splitter.feed(bytes(data)):
                return jsonstream.parse_object(text)
        raise gone(self._path)

    async def _read(self) -> None:
        try:
            while data := await self._stream.receive_some():
                for text in self._splitter.feed(bytes(data)):
                    self._take(jsonstream.parse_object(text))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except (ValueError, jsonstream.TooLongError) as error:
            log.warning("pageferryd sent what is not QMP: %s", error)
        finally:
            self._end()

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            event = event_of(message)
            for subscriber in self._subscribers:
                subscriber.send_nowait(event)
        elif (call := self._calls.get(message.get("id", -1))) is not None:
            call.reply = message
            call.answered.set()

    def _end(self) -> None:
        self._lost = True
        for call in self._calls.values():
            call.answered.set()
        for subscriber in self._subscribers:
            subscriber.close()


class _Call:
    """A command that waits for its answer; ``reply`` stays None when the connection ends first."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.reply: dict[str, Any] | None = None


@asynccontextmanager
async def open_client(
    path: Path = DEFAULT_SOCKET, *, timeout_s: float = 5.0
) -> AsyncIterator[ControlClient]:
    """Connect to the daemon and negotiate. Raises DaemonUnreachableError; closed at the end."""
    with trio.move_on_after(timeout_s) as scope:
        try:
            stream = await trio.open_unix_socket(os.fspath(path))
        except OSError as error:
            raise unreachable(path, error) from error
    if scope.cancelled_caught:
        raise silent(path)
    async with stream:
        client = ControlClient(stream, path)
        with trio.move_on_after(timeout_s) as scope:
            await client._negotiate()
        if scope.cancelled_caught:
            raise silent(path)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client._read)
            try:
                yield client
            except Exception as error:  # noqa: BLE001 - carried out of the nursery, unwrapped
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


def gone(path: Path) -> DaemonUnreachableError:
    """The error for a daemon that went away."""
    return DaemonUnreachableError(
        f"pageferryd closed the connection on {path}",
        guest_state="not known from here",
        advice="see the daemon's log, and when it is back: pageferry status, pageferry recover",
    )


def without_none(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that were given."""
    return {key: value for key, value in arguments.items() if value is not None}


def encoded(request: dict[str, Any]) -> bytes:
    """A command as it is sent. Raises CommandError for numbers that JSON does not have, which the
    daemon could only answer without an ``id``."""
    try:
        return jsonstream.encode(request)
    except ValueError as error:
        raise CommandError(f"{request['execute']} has an argument that is no number") from error


def version_of(greeting: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The version in a greeting, which must be pageferryd's: QEMU greets in the same way. Raises
    DaemonUnreachableError, KeyError and TypeError."""
    version: Mapping[str, Any] = greeting["QMP"]["version"]
    if not str(version["package"]).startswith("pageferry"):
        raise DaemonUnreachableError(
            f"what listens on {path} speaks QMP, but is a QEMU",
            advice="give the control socket of pageferryd, not a guest's QMP socket",
        )
    return version


def stranger(path: Path) -> DaemonUnreachableError:
    """The error for something else that listens there."""
    return DaemonUnreachableError(
        f"{path}: what listens there does not speak as pageferryd does",
        advice="check the path of the control socket",
    )


def silent(path: Path) -> DaemonUnreachableError:
    """The error for a daemon that does not answer."""
    return DaemonUnreachableError(
        f"what listens on {path} does not answer", advice="see whether pageferryd hangs: its log"
    )


def unreachable(path: Path, error: OSError) -> DaemonUnreachableError:
    """The error for a daemon that cannot be connected to."""
    advice = "start it (systemctl start pageferryd), or give its socket with --socket"
    if isinstance(error, PermissionError):
        advice = "run this as root, or as a user who may use the control socket"
    return DaemonUnreachableError(
        f"pageferryd cannot be reached on {path}: {error.strerror or error}", advice=advice
    )
