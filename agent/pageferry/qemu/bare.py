"""One QMP command by the standard library alone: for the guard of a throttled guest, which must
start at once and work when everything else has failed."""

from __future__ import annotations

import json
import socket
from typing import Any

TIMEOUT_S = 10.0


class BareMonitor:
    """A blocking QMP connection. Raises OSError or ValueError for all that goes wrong."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT_S)
        self._lines = self._socket.makefile("r", encoding="utf-8")
        try:
            self._socket.connect(path)
            self._lines.readline()
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str) -> Any:
        """What QEMU returns. ValueError when it refuses."""
        self._socket.sendall(json.dumps({"execute": command}).encode() + b"\n")
        while True:
            line = self._lines.readline()
            if not line:
                raise ConnectionResetError("QEMU closed its monitor")
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise ValueError(f"{command}: {answer['error'].get('desc')}")

    def close(self) -> None:
        """Let go of the monitor: it takes one client only."""
        self._lines.close()
        self._socket.close()


def continue_paused(path: str) -> bool:
    """Let the guest run if it is paused. Returns whether it was. Raises OSError, ValueError."""
    monitor = BareMonitor(path)
    try:
        if monitor.execute("query-status")["status"] != "paused":
            return False
        monitor.execute("cont")
        return True
    finally:
        monitor.close()
