"""Asking another agent one question, which its daemon answers itself."""

from __future__ import annotations

import contextlib

import trio

from pageferry.model.errors import PageferryError, PeerLostError
from pageferry.net.connecting import Route, open_control
from pageferry.wire.messages import Query, QueryReply


async def ask(route: Route, query: Query, timeout_s: float) -> QueryReply:
    """The answer of the agent at the other end of *route*.

    Raises PageferryError when it cannot be reached, does not answer, or may not be believed.
    """
    stream = await open_control(route, query)
    try:
        with trio.fail_after(timeout_s):
            reply = await stream.receive()
    except trio.TooSlowError as error:
        raise PeerLostError(f"{route.peer} does not answer") from error
    finally:
        with trio.CancelScope(shield=True), contextlib.suppress(Exception):
            await stream.aclose()
    if not isinstance(reply, QueryReply):
        raise PageferryError(f"{route.peer} did not answer the question")
    return reply
