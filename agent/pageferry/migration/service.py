"""Having systemd start and end the service that a QEMU is in.

By its own programs, which speak to it as root over /run/systemd/private: neither D-Bus's daemon nor
polkit has a part in that, and the sandbox of pageferryd allows it.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from pageferry.kernel.identity import ProcessIdentity, process_identity
from pageferry.model.errors import KernelFeatureError

log = logging.getLogger(__name__)

SYSTEMCTL: Final = "/usr/bin/systemctl"

ANSWER_S: Final = 20.0
"""How long systemd may take to answer."""


async def start(command: Sequence[str], output: int, environment: Mapping[str, str]) -> int:
    """Run systemd-run's *command* to its end, which is when the program runs; returns its status.

    What it says goes to *output*. Raises OSError when it cannot be run, KernelFeatureError when
    systemd does not answer.
    """
    return (await _run(command, output, environment)).returncode


async def main_process(service: str) -> ProcessIdentity | None:
    """The process that *service* was started for; None when it has ended."""
    done = await _run([SYSTEMCTL, "show", "--property=MainPID", "--value", service])
    said = done.stdout.decode(errors="replace").strip()
    return process_identity(int(said)) if said.isdecimal() and int(said) else None


async def stop(service: str, identity: ProcessIdentity) -> None:
    """Have systemd end *service*, if that very process is in it still. When systemd does not, that
    is logged; the process tells whether it has ended.
    """
    if not identity.is_alive or not is_in(service, identity.pid):
        return
    try:
        done = await _run([SYSTEMCTL, "stop", service])
    except (OSError, KernelFeatureError) as error:
        log.error("%s cannot be stopped: %s", service, error)
        return
    if done.returncode:
        log.error("%s is not stopped: %s", service, done.stdout.decode(errors="replace").strip())


def is_in(service: str, pid: int) -> bool:
    """Whether process *pid* is in a cgroup of *service*."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            return any(service in line.strip().split("/") for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return False


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
