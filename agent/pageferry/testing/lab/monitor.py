"""The lab's own QMP client: blocking, for threads and scripts.

It talks to a QEMU's second QMP socket, so the first one stays free for pageferry, and it shares no
code with ``pageferry.qemu``, so that it can watch over it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any

from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.patience import patient

ANSWER_TIMEOUT_S = patient(30.0)
"""QEMU answers most commands within milliseconds, but `cont` may wait for the big lock."""


class LabMonitor:
    """One QMP connection. Events that arrive are kept in `events` in their order."""

    def __init__(self, path: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._lines = self._socket.makefile("r", encoding="utf-8")
        try:
            self._socket.connect(str(path))
            self._next_message()
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, **arguments: Any) -> Any:
        """What `command` returns; underscores in arguments' names become hyphens.

        LabError with QEMU's words when it refuses, does not answer in time, or is gone.
        """
        renamed = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = {"execute": command, "arguments": renamed}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise LabError(f"QMP {command}: {error}") from error
        while True:
            message = self._next_message()
            if "error" in message:
                raise LabError(f"QMP {command}: {message['error'].get('desc')}")
            if "return" in message:
                return message["return"]

    def human(self, line: str) -> str:
        """The text that the human monitor's command prints."""
        return str(self.execute("human-monitor-command", command_line=line))

    def wait_event(self, name: str, timeout_s: float) -> dict[str, Any]:
        """The first event of this name, whether it has come already or comes in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            for event in self.events:
                if event["event"] == name:
                    return event
            if time.monotonic() > deadline:
                raise LabError(f"no event {name} within {timeout_s} s")
            self._next_message()

    def take_events(self) -> list[dict[str, Any]]:
        """The events that have come since the last call, or since the connection was made.

        Of a QEMU that has ended: all that it still sent.
        """
        with contextlib.suppress(LabError):
            self.execute("query-status")
            found, self.events = self.events, []
            return found
        with contextlib.suppress(LabError):
            while True:
                self._next_message()
        found, self.events = self.events, []
        return found

    def close(self) -> None:
        """Close the connection; QEMU takes the next client then."""
        self._lines.close()
        self._socket.close()

    def _next_message(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise LabError(f"QEMU does not answer on QMP: {error}") from error
        if not line:
            raise LabError("QEMU closed its QMP socket")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self.events.append(message)
        return message
