"""The server's side of QMP on a UNIX socket, for many clients at once.

Each connection negotiates for itself: until `qmp_capabilities` every other command is answered
with CommandNotFound and no event is sent. Commands of one client run one after the other and are
answered in order; clients do not wait for each other.

Who may connect is for the socket's mode and group to say. Who has connected is known by SO_PEERCRED
and SO_PEERGROUPS, and a client that may only read gets query commands and events.

A client that does not read is not allowed to hold up events for the others, nor to make the daemon
remember them for ever: it is dropped once EVENT_BACKLOG answers and events wait for it.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from pageferry import __version__
from pageferry.control import jsonstream
from pageferry.control.declarations import (
    CAPABILITIES,
    QUERY_COMMANDS,
    QUERY_QMP_SCHEMA,
    QUERY_VERSION,
)
from pageferry.control.errors import COMMAND_NOT_FOUND, CommandError
from pageferry.control.registry import Peer, Registry
from pageferry.model.errors import PageferryError, RefusedError

log = logging.getLogger(__name__)

EVENT_BACKLOG: Final = 1024
"""Answers and events that may wait for a client: minutes of a migration's events."""

MAX_CLIENTS: Final = 256
"""Connections at once; more are a leak on the other side, and would use up our descriptors."""

RECEIVE_BYTES: Final = 16 * 1024

SO_PEERGROUPS: Final = 59
"""socket(7) does not name it, and Python's socket module neither; Linux 4.13."""

GROUPS_BYTES: Final = 1024
"""Room for 256 groups, the most that Python's getsockopt takes."""

Access = Callable[[Peer], bool]
"""Whether a peer may do everything; one that may not can still use query commands."""


Observe = Callable[[str, bool], None]
"""Told the name of each command that exists, else "unknown", and whether it succeeded."""


def _full_access(_peer: Peer) -> bool:
    return True


def _unobserved(_name: str, _succeeded: bool) -> None:
    return


def version_info() -> dict[str, Any]:
    """QAPI's VersionInfo. ``qemu`` is where QMP's clients look for the version of who answers."""
    major, minor, micro = (int(part) for part in __version__.split("."))
    return {
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": f"pageferry {__version__}",
    }


def bind_control_socket(path: Path, mode: int = 0o600, gid: int | None = None) -> socket.socket:
    """A listening UNIX socket at *path* with *mode* and group, in the place of a stale one.

    Raises RefusedError when someone listens there already, or the place cannot be used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise _cannot_bind(path, error) from error
    try:
        # chmod after bind would leave the socket open to all for a moment, and to the wrong group.
        before = os.umask(0o777 if gid is not None else 0o777 & ~mode)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        if gid is not None:
            os.chown(path, -1, gid)
            path.chmod(mode)
        sock.listen(64)
    except OSError as error:
        sock.close()
        raise _cannot_bind(path, error) from error
    return sock


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise RefusedError(
                f"{path} exists and is not a socket",
                guest_state="",
                advice="move it away, or set control-socket to another path",
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise RefusedError(
        f"another pageferryd already listens on {path}",
        guest_state="",
        advice="stop it, or give this one a control-socket of its own",
    )


def _cannot_bind(path: Path, error: OSError) -> RefusedError:
    reason = "the path is too long for a UNIX socket" if error.errno is None else error.strerror
    if error.errno == errno.EADDRINUSE:
        reason = "another daemon took it just now"
    return RefusedError(
        f"cannot listen on {path}: {reason}",
        guest_state="",
        advice="check the directory and its permissions, or set control-socket to another path",
    )


class ControlServer:
    """Serves the commands of a registry. Events go to every client that has negotiated."""

    def __init__(
        self,
        registry: Registry,
        *,
        may_change: Access = _full_access,
        observe: Observe = _unobserved,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._registry = registry
        self._clock_ns = clock_ns
        self._clients: set[_Client] = set()
        self.may_change = may_change
        self.observe = observe
        registry.add(CAPABILITIES, _enable_nothing)
        registry.add(QUERY_VERSION, self._query_version)
        registry.add(QUERY_COMMANDS, self._query_commands)
        registry.add(QUERY_QMP_SCHEMA, self._query_schema)

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    async def serve(self, sock: socket.socket) -> None:
        """Accept clients on the listening socket *sock*, for ever. Closes it when cancelled."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        await trio.serve_listeners(self.handle, [listener])

    def emit(self, event: str, data: dict[str, Any]) -> None:
        """Send an event to all clients. Never waits."""
        message = {"event": event, "data": data, "timestamp": self._timestamp()}
        for client in list(self._clients):
            client.post(message)

    def _timestamp(self) -> dict[str, int]:
        seconds, rest_ns = divmod(self._clock_ns(), 1_000_000_000)
        return {"seconds": seconds, "microseconds": rest_ns // 1000}

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection until it ends. An error of one client is never one of the server."""
        if len(self._clients) >= MAX_CLIENTS:
            log.warning("control socket: %d clients, one more turned away", MAX_CLIENTS)
            await stream.aclose()
            return
        client = _Client(stream, self._registry, self._may_run, self._observe)
        self._clients.add(client)
        try:
            await client.run()
        # A client that leaves with unread answers resets the connection; its tasks' errors come in
        # groups.
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            log.debug("control client (%s) went away", client.peer)
        finally:
            self._clients.discard(client)
            await trio.aclose_forcefully(stream)

    def _observe(self, name: object, succeeded: bool) -> None:
        known = isinstance(name, str) and name in self._registry.declarations
        self.observe(str(name) if known else "unknown", succeeded)

    def _may_run(self, name: str, peer: Peer) -> None:
        """Raise CommandError unless *peer* may run the command, which exists."""
        if not self._registry.declaration(name).only_reads and not self.may_change(peer):
            raise CommandError.denied(
                f"{name} is not allowed: the group of this client (uid {peer.uid}) may only read",
                "use query commands, or ask root",
            )

    async def _query_version(self, _arguments: dict[str, Any], _peer: Peer) -> dict[str, Any]:
        return version_info()

    async def _query_commands(
        self, _arguments: dict[str, Any], _peer: Peer
    ) -> list[dict[str, Any]]:
        return [{"name": name} for name in self._registry.names()]

    async def _query_schema(self, _arguments: dict[str, Any], _peer: Peer) -> list[dict[str, Any]]:
        return self._registry.introspection()


async def _enable_nothing(arguments: dict[str, Any], _peer: Peer) -> dict[str, Any]:
    if arguments.get("enable"):
        raise CommandError(f"Capability {arguments['enable'][0]:.40} not available")
    return {}


class _Client:
    """One connection."""

    def __init__(
        self,
        stream: trio.SocketStream,
        registry: Registry,
        may_run: Callable[[str, Peer], None],
        observe: Callable[[object, bool], None],
    ) -> None:
        self.peer = _peer_of(stream)
        self._observe = observe
        self._may_run = may_run
        self._stream = stream
        self._registry = registry
        self._negotiated = False
        self._scope = trio.CancelScope()
        self._outbox, self._to_send = trio.open_memory_channel[dict[str, Any]](EVENT_BACKLOG)

    def post(self, message: dict[str, Any]) -> None:
        """Queue an event; drop a client that lets too many wait."""
        if not self._negotiated:
            return
        try:
            self._outbox.send_nowait(message)
        except trio.ClosedResourceError:
            pass  # it is leaving
        except trio.WouldBlock:
            log.warning("control client (%s) does not read its events: dropped", self.peer)
            self._scope.cancel()

    async def run(self) -> None:
        """Until the client leaves or is dropped."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._outbox.send({"QMP": {"version": version_info(), "capabilities": []}})
                await self._read()
                await self._outbox.aclose()  # the writer ends when all is sent

    async def _write(self) -> None:
        try:
            async for message in self._to_send:
                await self._stream.send_all(jsonstream.encode(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()

    async def _read(self) -> None:
        splitter = jsonstream.JsonSplitter()
        try:
            while data := await self._stream.receive_some(RECEIVE_BYTES):
                for text in splitter.feed(data):
                    await self._outbox.send(await self._answer(text))
        except jsonstream.TooLongError as error:
            await self._outbox.send({"error": CommandError(f"{error}; closing").as_reply()})

    async def _answer(self, text: bytes) -> dict[str, Any]:
        reply: dict[str, Any] = {}
        request: dict[str, Any] = {}
        try:
            request = jsonstream.parse_object(text)
            if "id" in request:
                reply["id"] = request.pop("id")
            reply["return"] = await self._execute(request)
        except ValueError as error:
            reply["error"] = CommandError(str(error)).as_reply()
        except CommandError as error:
            reply["error"] = error.as_reply()
        except PageferryError as error:
            reply["error"] = CommandError.from_pageferry(error).as_reply()
        except Exception:
            log.exception("a command failed in a way that nobody foresaw")
            reply["error"] = CommandError("internal error, see the daemon's log").as_reply()
        self._observe(request.get("execute"), "return" in reply)
        return reply

    async def _execute(self, request: dict[str, Any]) -> Any:
        name, arguments = _parse_request(request)
        if self._negotiated == (name == CAPABILITIES.name):
            raise CommandError(
                "Capabilities negotiation is already complete, command ignored"
                if self._negotiated
                else "Expecting capabilities negotiation with 'qmp_capabilities'",
                COMMAND_NOT_FOUND,
            )
        self._may_run(name, self.peer)
        log.debug("control client (%s): %s", self.peer, name)
        result = await self._registry.call(name, arguments, self.peer)
        self._negotiated = True  # the first command that gets here is qmp_capabilities
        return {} if result is None else result


def _parse_request(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    for key in request:
        if key not in ("execute", "arguments"):
            raise CommandError(f"QMP input member '{key:.80}' is unexpected")
    if "execute" not in request:
        raise CommandError("QMP input lacks member 'execute'")
    name, arguments = request["execute"], request.get("arguments", {})
    if not isinstance(name, str):
        raise CommandError("QMP input member 'execute' must be a string")
    if not isinstance(arguments, dict):
        raise CommandError("QMP input member 'arguments' must be an object")
    return name, arguments


def _peer_of(stream: trio.SocketStream) -> Peer:
    """SO_PEERCRED (unix(7)): struct ucred, three ints; and the supplementary groups."""
    size = struct.calcsize("3i")
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, gid = struct.unpack("3i", credentials)
    return Peer(pid, uid, gid, _groups_of(stream))


def _groups_of(stream: trio.SocketStream) -> frozenset[int] | None:
    try:
        data = stream.socket.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES)
    except OSError:  # ERANGE: it has more
        return None
    return frozenset(struct.unpack(f"{len(data) // 4}I", data))
