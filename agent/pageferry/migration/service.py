"""Having systemd start and end the service that a QEMU is in.

By its own programs, which speak to it as root over /run/systemd/private: neither D-Bus's daemon nor
polkit has a part in that, and the sandbox of pageferryd allows it.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from pageferry.kernel.identity import ProcessIdentity, process_identity
from pageferry.model.errors import KernelFeatureError

log = logging.getLogger(__name__)

SYSTEMCTL: Final = "/usr/bin/systemctl"

ANSWER_S: Final = 20.0
"""How long systemd may take to answer."""

LOOKS: Final = 3
BETWEEN_LOOKS_S: Final = 0.3
"""Between being run and having asked systemd-run takes some 10 ms on an idle host."""


async def start(command: Sequence[str], output: int, environment: Mapping[str, str]) -> int:
    """Run systemd-run's *command* to its end, which is when the program runs; returns its status.

    What it says goes to *output*. Raises OSError when it cannot be run, KernelFeatureError when
    systemd does not answer.
    """
    return (await _run(command, output, environment)).returncode


async def main_process(service: str) -> ProcessIdentity | None:
    """The process that *service* was started for; None when it has ended."""
    said = await _property(service, "MainPID")
    return process_identity(int(said)) if said.isdecimal() and int(said) else None


@dataclass(frozen=True, slots=True)
class AskedFor:
    """A service that systemd was asked to start, by a worker that may not have lived to hear of it.

    Its description says by which migration: another of that name is left alone.
    """

    name: str
    description: str

    async def end(self) -> bool:
        """Have systemd end it, if it was started. Whether none is left."""
        for _ in range(LOOKS):
            if await _property(self.name, "Description") == self.description:
                await _stop(self.name)
                return await _property(self.name, "Description") != self.description
            # systemd-run, which outlives whoever ran it, may be about to ask.
            await trio.sleep(BETWEEN_LOOKS_S)
        return True


async def stop(service: str, identity: ProcessIdentity) -> None:
    """Have systemd end *service*, if that very process is in it still. When systemd does not, that
    is logged; the process tells whether it has ended.
    """
    if identity.is_alive and is_in(service, identity.pid):
        await _stop(service)


async def _stop(service: str) -> None:
    try:
        done = await _run([SYSTEMCTL, "stop", service])
    except (OSError, KernelFeatureError) as error:
        log.error("%s cannot be stopped: %s", service, error)
        return
    if done.returncode:
        log.error("%s is not stopped: %s", service, _said(done))


def is_in(service: str, pid: int) -> bool:
    """Whether process *pid* is in a cgroup of *service*."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            return any(service in line.strip().split("/") for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return False


async def _property(service: str, name: str) -> str:
    """Empty where there is no such service."""
    return _said(await _run([SYSTEMCTL, "show", f"--property={name}", "--value", service]))


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stdout.decode(errors="replace").strip()


async def _run(
    command: Sequence[str],
    output: int = subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end, whoever cancels meanwhile: it would be unknown what systemd did."""

    def run() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            cwd="/",
            env=environment,
            timeout=ANSWER_S,
        )

    try:
        return await trio.to_thread.run_sync(run)
    except subprocess.TimeoutExpired:
        raise KernelFeatureError(
            f"systemd has not answered {os.path.basename(command[0])} within {ANSWER_S:.0f} s",
            advice="see systemctl list-jobs",
        ) from None
