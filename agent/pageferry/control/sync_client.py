"""The same client without trio: for scripts, and for programs with loops of their own.

    with connect() as client:
        migration_id = client.migrate("web1", "host-b")
        print(client.wait(migration_id).status)

Use a client from one thread. Calls block until the answer is there; `events` and `wait` as long as
it takes.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from pageferry.control import calls, jsonstream
from pageferry.control.calls import Call
from pageferry.control.client import (
    DEFAULT_SOCKET,
    MAX_REPLY_BYTES,
    encoded,
    gone,
    silent,
    stranger,
    unreachable,
    version_of,
    without_none,
)
from pageferry.control.errors import GENERIC_ERROR, CommandError
from pageferry.control.info import Event, MigrationInfo, event_of

RECEIVE_BYTES: Final = 64 * 1024

POLL_S: Final = 5.0
"""How long `wait` relies on events alone."""

P = ParamSpec("P")
T = TypeVar("T")


def _method(make: Callable[P, Call[T]]) -> Callable[Concatenate[SyncClient, P], T]:
    """A method that runs the call that *make* makes, with its arguments and its docstring."""

    @wraps(make)
    def method(client: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client.ask(make(*args, **kwargs))

    return method


class SyncClient:
    """A negotiated connection, made by `connect`. Its calls raise CommandError when the daemon
    refuses, and DaemonUnreachableError when it went away."""

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self.version: Mapping[str, Any] = {}
        self._socket = sock
        self._path = path
        self._splitter = jsonstream.JsonSplitter(MAX_REPLY_BYTES)
        self._texts: deque[bytes] = deque()
        self._events: deque[Event] = deque()
        self._wants_events = False
        self._last_id = 0

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a command, return its answer."""
        self._last_id += 1
        request: dict[str, Any] = {"execute": command, "id": self._last_id}
        if arguments:
            request["arguments"] = without_none(arguments)
        self._send(encoded(request))
        while True:
            message = self._message(None)
            if message is not None and message.get("id") == self._last_id:
                break
        if "error" in message:
            error = message["error"]
            raise CommandError(
                error.get("desc", "?"), error.get("class", GENERIC_ERROR), error.get("report")
            )
        return message.get("return")

    def ask(self, call: Call[T]) -> T:
        """Run a call of `calls`."""
        return call.parse(self.execute(call.command, call.arguments))

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

    @contextmanager
    def events(self, timeout_s: float | None = None) -> Iterator[Iterator[Event]]:
        """All events from entry on, one by one. The iterator ends when none has come for
        *timeout_s*; commands may be run in between."""
        self._wants_events = True
        try:
            yield self._each_event(timeout_s)
        finally:
            self._wants_events = False
            self._events.clear()

    def wait(self, migration_id: str) -> MigrationInfo:
        """Wait until a migration is over; returns its last state."""
        with self.events():
            while not (info := self.query_migrate(migration_id=migration_id)).is_final:
                deadline = time.monotonic() + POLL_S
                while (message := self._message(deadline)) is not None:
                    if message.get("event") == "MIGRATION":
                        break
        return info

    def _each_event(self, timeout_s: float | None) -> Iterator[Event]:
        while True:
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            while not self._events:
                if self._message(deadline) is None:
                    return
            yield self._events.popleft()

    def _message(self, deadline: float | None) -> dict[str, Any] | None:
        """The next message; None when the deadline has passed. Events are put aside."""
        while not self._texts:
            if deadline is not None:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                self._socket.settimeout(left_s)
            else:
                self._socket.settimeout(None)
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except TimeoutError:
                return None
            except OSError as error:
                raise gone(self._path) from error
            if not data:
                raise gone(self._path)
            self._texts.extend(self._splitter.feed(data))
        message = jsonstream.parse_object(self._texts.popleft())
        if "event" in message and self._wants_events:
            self._events.append(event_of(message))
        return message

    def _send(self, text: bytes) -> None:
        self._socket.settimeout(None)
        try:
            self._socket.sendall(text)
        except OSError as error:
            raise gone(self._path) from error

    def _negotiate(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        greeting = self._message(deadline)
        if greeting is None:
            raise silent(self._path)
        self.version = version_of(greeting, self._path)
        self._send(encoded({"execute": "qmp_capabilities", "id": 0}))
        answer = self._message(deadline)
        if answer is None:
            raise silent(self._path)
        _ = answer["return"]


@contextmanager
def connect(path: Path = DEFAULT_SOCKET, *, timeout_s: float = 5.0) -> Iterator[SyncClient]:
    """Connect to the daemon and negotiate. Raises DaemonUnreachableError; closed at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(os.fspath(path))
        except TimeoutError:
            raise silent(path) from None
        except OSError as error:
            raise unreachable(path, error) from error
        client = SyncClient(sock, path)
        try:
            client._negotiate(timeout_s)
        except (ValueError, KeyError, TypeError, jsonstream.TooLongError) as error:
            raise stranger(path) from error
        yield client
