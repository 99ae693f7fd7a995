"""The metrics over HTTP, on TCP or a UNIX socket: GET /metrics, and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import h11
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pageferry.control.server import bind_control_socket
from pageferry.daemon.listener import open_listeners
from pageferry.net.address import Address

log = logging.getLogger(__name__)

REQUEST_S: Final = 10.0
"""How long a scraper may take for its request and for reading the answer."""

MAX_SCRAPERS: Final = 16

SOCKET_MODE: Final = 0o666
"""Numbers only, and only for who can reach the directory."""

Place = Address | Path


async def open_metrics_listeners(place: Place) -> list[trio.SocketListener]:
    """Listen there. Raises RefusedError."""
    if isinstance(place, Address):
        return await open_listeners(place, "listen in [metrics]")
    sock = bind_control_socket(place, SOCKET_MODE)
    return [trio.SocketListener(trio.socket.from_stdlib_socket(sock))]


class MetricsServer:
    """Answers scrapes of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._scrapers = 0

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        """Accept scrapers for ever. Closes the listeners when cancelled."""
        await trio.serve_listeners(self.handle, listeners)

    async def handle(self, stream: trio.SocketStream) -> None:
        """One connection, one request. Closes *stream*."""
        if self._scrapers >= MAX_SCRAPERS:
            await trio.aclose_forcefully(stream)
            return
        self._scrapers += 1
        try:
            with trio.move_on_after(REQUEST_S):
                await self._answer(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError) as err:
            log.debug("metrics: %s", err)
        except Exception:
            log.exception("metrics: a scrape failed")
        finally:
            self._scrapers -= 1
            await trio.aclose_forcefully(stream)

    async def _answer(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        request: h11.Request | None = None
        while request is None:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(4096))
            elif isinstance(event, h11.Request):
                request = event
            else:
                return
        status, kind, body = self._body(request)
        headers = [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        parts: list[h11.Event] = [h11.Response(status_code=status, headers=headers)]
        if request.method != b"HEAD":
            parts.append(h11.Data(data=body))
        parts.append(h11.EndOfMessage())
        data = b"".join(connection.send(part) or b"" for part in parts)
        await stream.send_all(data)
        await stream.send_eof()
        await stream.receive_some(1)  # until the other side has read it

    def _body(self, request: h11.Request) -> tuple[int, str, bytes]:
        plain = "text/plain; charset=utf-8"
        if request.method not in (b"GET", b"HEAD"):
            return 405, plain, b"only GET\n"
        if request.target.partition(b"?")[0] != b"/metrics":
            return 404, plain, b"see /metrics\n"
        accept = next((v for name, v in request.headers if name == b"accept"), b"").decode("latin1")
        encoder, kind = choose_encoder(accept)
        return 200, kind, encoder(self._registry)


def remove(place: Place | None) -> None:
    """Remove the socket's file, where it is one."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
