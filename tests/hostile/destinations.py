"""A destination that misbehaves on real sockets, against a real pageferryd whose guest runs."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pageferry.migration.journal import read_journal
from pageferry.testing.lab.hosts import tracked_ranges_in, userfaultfds_in
from pageferry.testing.lab.monitor import LabMonitor
from pageferry.wire import messages as m
from tests.hostile.peers import MACHINE, TIMEOUT_S, Speaker
from tests.recovery.bench import Daemon, daemon, eventually

TOKEN = b"t" * 32


@dataclass(slots=True)
class Host:
    """A source: its daemon, and a QEMU in which a guest named web runs."""

    daemon: Daemon
    qmp: Path
    qemu: subprocess.Popen[bytes] = field(repr=False)

    def control(self, command: str, **arguments: object) -> Any:
        """One command of the daemon's control socket."""
        with contextlib.closing(LabMonitor(self.daemon.folder / "control.sock")) as monitor:
            return monitor.execute(command, **arguments)

    def ended(self, migration_id: str) -> dict[str, Any]:
        """What query-migrate says of it at its end."""

        def over() -> dict[str, Any] | None:
            found: dict[str, Any] = self.control("query-migrate", **{"migration-id": migration_id})
            return found if found["status"] in ("completed", "failed", "cancelled") else None

        info: dict[str, Any] = eventually(over, "the migration is over")
        return info

    def assert_untouched(self, migration_id: str) -> None:
        """The guest runs on, without a trace, and the journal says that it is kept."""
        with contextlib.closing(LabMonitor(self.qmp)) as monitor:
            assert monitor.execute("query-status")["status"] == "running"
            listed = monitor.execute("query-migrate-capabilities")
            assert not [each["capability"] for each in listed if each["state"]]
        assert userfaultfds_in(self.qemu.pid) == 0
        assert tracked_ranges_in(self.qemu.pid) == 0
        state = read_journal(self.daemon.state_dir / f"{migration_id}.source.journal")
        assert state is not None
        assert state.phase in ("failed", "cancelled")
        assert self.daemon.process is not None
        assert self.daemon.process.poll() is None


@contextlib.contextmanager
def host(folder: Path) -> Iterator[Host]:
    """A daemon that is up and a guest that runs (its firmware); both ended with the block."""
    folder.mkdir(exist_ok=True)
    qmp, ram = folder / "web.qmp", Path(f"/dev/shm/pageferry-hostile-source-{os.getpid()}")
    command = [
        *("qemu-system-x86_64", "-display", "none", "-nodefaults"),
        *("-machine", f"{MACHINE},memory-backend=ram0", "-m", "32M"),
        *("-object", f"memory-backend-file,id=ram0,mem-path={ram},size=32M,share=on"),
        *("-qmp", f"unix:{qmp},server=on,wait=off"),
    ]
    with daemon(folder) as its_daemon, subprocess.Popen(command, stdin=subprocess.DEVNULL) as qemu:
        try:
            eventually(qmp.exists, "QEMU is up")
            its_daemon.start(guests={"web": qmp})
            its_daemon.wait_ready()
            yield Host(its_daemon, qmp, qemu)
        finally:
            qemu.kill()
            ram.unlink(missing_ok=True)


class Destination(Speaker):
    """One hostile destination, for one migration that it has the source begin."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT_S)
        self.channels: list[socket.socket] = []
        self._drains: list[threading.Thread] = []
        host_and_port = f"127.0.0.1:{self._listener.getsockname()[1]}"
        started = host.control("migrate", guest="web", uri=host_and_port)
        self.migration_id = str(started["migration-id"])
        self.control = self._accept()
        self.expect(m.Hello)

    def close(self) -> None:
        for sock in (self._listener, self.control, *self.channels):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._drains:
            thread.join()
        for sock in (self._listener, self.control, *self.channels):
            sock.close()

    def _accept(self) -> socket.socket:
        sock, _peer = self._listener.accept()
        sock.settimeout(TIMEOUT_S)
        return sock

    # Getting there.

    def agree(self) -> None:
        """Up to where Ready is due."""
        self.say(m.HelloReply(2, "hostile"))
        self.expect(m.Describe)

    def start(self, *, drained: bool = True) -> None:
        """Up to Started: pages come. *drained*: and are read, and thrown away."""
        self.agree()
        self.say(m.Ready(TOKEN, 2))
        self.channels = [self._accept() for _index in range(2)]
        if drained:
            for sock in self.channels:
                self._drains.append(threading.Thread(target=_drain, args=[sock]))
                self._drains[-1].start()
        self.say(m.Started())

    def first_round(self) -> None:
        """Up to where its acknowledgement is due."""
        self.start()
        self.expect(m.RoundEnd)


def _drain(sock: socket.socket) -> None:
    sock.settimeout(None)
    with contextlib.suppress(OSError):
        while sock.recv(1 << 20):
            continue
