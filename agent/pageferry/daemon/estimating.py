"""Estimates, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

import trio

from pageferry.control.errors import CommandError
from pageferry.model.errors import MigrationFailedError

ESTIMATION_COMMAND: Final = (sys.executable, "-P", "-m", "pageferry.migration.estimation")

GRACE_S: Final = 60.0
"""How long it may take beside the sample: looking at a guest takes a second or two."""


async def run_estimation(request: dict[str, Any]) -> dict[str, Any]:
    """Ask a process for an estimate; it is killed when this is cancelled or takes too long.

    Raises CommandError with the guest's refusal, MigrationFailedError when the process fails.
    """
    advice = "see the daemon's log, and try again"
    with trio.move_on_after(float(request["sample-time"]) + GRACE_S) as limit:
        done = await trio.run_process(
            ESTIMATION_COMMAND,
            stdin=json.dumps(request).encode(),
            capture_stdout=True,
            check=False,
            stderr=None,
            start_new_session=True,
            deliver_cancel=_kill,
        )
    if limit.cancelled_caught:
        raise MigrationFailedError(
            "the estimate took too long", guest_state="as before", advice=advice
        )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise MigrationFailedError(
            f"the process that estimates failed (exit status {done.returncode})",
            guest_state="as before",
            advice=advice,
        ) from None
    if "error" in answer:
        raise CommandError(answer["error"]["message"], report=answer["error"])
    found: dict[str, Any] = answer["return"]
    return found


async def _kill(process: subprocess.Popen[bytes] | trio.Process) -> None:
    process.kill()
