"""Two hosts for what is left over after a crash, and how they are brought there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pageferry.model.phase import DestinationPhase, SourcePhase
from tests.recovery.bench import Daemon, Qemu, eventually, phase_in, write_journal


@dataclass(slots=True)
class Hosts:
    """Two hosts with a daemon each, that are not started, and a QEMU each."""

    source: Daemon
    destination: Daemon
    source_qemu: Qemu
    destination_qemu: Qemu

    def source_journal(self, phase: SourcePhase, **notes: Any) -> Path:
        return write_journal(
            self.source.state_dir,
            "source",
            phase,
            self.source_qemu,
            host="127.0.0.1",
            port=self.destination.port,
            **{"was-running": True, **notes},
        )

    def destination_journal(self, phase: DestinationPhase, **notes: Any) -> Path:
        return write_journal(
            self.destination.state_dir,
            "destination",
            phase,
            self.destination_qemu,
            **{"guest-running": True, **notes},
        )


def until(path: Path, phase: str) -> None:
    eventually(lambda: phase_in(path) == phase, f"{path.name} says {phase}")


def handed_over(hosts: Hosts) -> None:
    """The source's QEMU as it is when the commit has been said."""
    hosts.source_qemu.ask("cont")
    hosts.source_qemu.migrate_away(pause_before_switchover=False)
    assert hosts.source_qemu.status == "postmigrate"
