"""When a guest is given up, and what catches a mistake: by programs in the place of QEMU."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pageferry.testing.lab.kernels import mutants
from pageferry.testing.lab.kernels.booting import BootError, GuestReport, Waits, boot
from pageferry.testing.lab.packages import QemuBinary

NOWHERE = Path("/nonexistent")


def machine(script: str) -> QemuBinary:
    """Says and does what a guest might."""
    return QemuBinary(Path("/bin/sh"), (7, 2, 0), args=("-c", script))


def run(script: str, waits: Waits | None = None) -> GuestReport:
    return boot(machine(script), NOWHERE, NOWHERE, waits=waits)


def test_guest_that_comes_to_its_end() -> None:
    report = run("echo GUEST RUNS: /bin/a; echo ok 1 one; echo GUEST CHECKS LOCKS; echo GUEST DONE")
    assert report.program("a").passed == ["one"]
    assert report.locks_checked
    assert not run("echo GUEST DONE").locks_checked


def test_guest_that_stops_halfway() -> None:
    with pytest.raises(BootError, match=r"did not come to its end:\n.*panic"):
        run("echo Kernel panic")


def test_guest_that_falls_silent_is_given_up_and_ended(tmp_path: Path) -> None:
    script = f"echo $$ >{tmp_path}/pid; echo the last word; exec sleep 1000"
    with pytest.raises(BootError, match=r"said nothing for 2 s(.|\n)*the last word"):
        run(script, Waits(silence_s=2))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_guest_that_goes_on_talking_is_given_up_too() -> None:
    with pytest.raises(BootError, match="ran for 3 s"):
        run("while echo more; do sleep 0.2; done", Waits(silence_s=1000, total_s=3))


def test_slow_guest_that_says_something_now_and_then_is_not() -> None:
    began = time.monotonic()
    report = run("for i in 1 2 3 4; do sleep 1; echo $i; done; echo GUEST DONE", Waits(silence_s=3))
    assert time.monotonic() - began > 3
    assert report.longest_silence_s < 3 < report.ran_s


@pytest.mark.parametrize(
    ("script", "failed"),
    [
        ("echo not ok 1 one; echo not ok 2 two; echo GUEST RAN: /bin/x: exit 1", 2),
        ("echo ok 1 one; echo GUEST RAN: /bin/x: exit 0", 0),
        ("echo ok 1 one; echo GUEST RAN: /bin/x: signal 11", mutants.HANGS),
        ("exit 1", mutants.HANGS),
        ("exec sleep 1000", mutants.HANGS),
    ],
)
def test_mistake_is_caught_by_checks_that_fail_or_never_end(
    script: str, failed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = "echo GUEST RUNS: /bin/pagemap_shmem_swap; "
    qemu = machine(f"{starts}{script}; echo GUEST DONE")
    monkeypatch.setattr(mutants, "qemu_7", lambda: qemu)
    assert mutants.failures(NOWHERE, NOWHERE, Waits(silence_s=2)) == failed
