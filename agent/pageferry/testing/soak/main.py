"""`make soak`: let guests go back and forth for some minutes while things break.

Exit status 1 as soon as a guest is lost, doubled, corrupt or misplaced, or something is leaked; the
journals and logs are kept then, and the line that repeats it is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import shutil
import sys
import time
from pathlib import Path

from pageferry.testing.lab.cache import cache_folder
from pageferry.testing.lab.cleanup import LabError, orderly_termination
from pageferry.testing.lab.hosts import is_root
from pageferry.testing.lab.packages import PackageError, QemuBinary, qemu_7, qemu_10
from pageferry.testing.lab.swap import some_swap
from pageferry.testing.soak.judging import Tally
from pageferry.testing.soak.plan import Fault, Step, steps
from pageferry.testing.soak.stage import Stage, stage
from pageferry.testing.soak.stepping import Outcome, take_step

GENERATIONS = {"7.2": qemu_7, "10.0": qemu_10}
DEFAULT_MINUTES = 5.0


def soak(binary: QemuBinary, seed: int, minutes: float, first: int = 1) -> Tally:
    """Take steps for so many minutes, or until one finds something. Steps before *first* are
    passed over. LabError when the guests cannot be started."""
    tally = Tally()
    with some_swap(), stage(binary) as everything:
        deadline_s = time.monotonic() + minutes * 60
        for step in itertools.islice(steps(seed), first - 1, None):
            outcome = take_step(everything, step)
            tally.count(step.fault.value, struck=outcome.struck, carried=outcome.carried)
            tally.recovered += bool(outcome.operator)
            tally.findings += outcome.findings
            _tell(everything, step, outcome)
            if outcome.findings:
                _keep(everything, seed, step, outcome)
            if outcome.findings or time.monotonic() > deadline_s:
                return tally
    return tally


def _tell(everything: Stage, step: Step, outcome: Outcome) -> None:
    struck = "" if step.fault is Fault.NONE or outcome.struck else " (came too late)"
    where = everything.travellers[step.guest]
    print(
        f"{step}{struck}: {'carried' if outcome.carried else 'kept'}, source says"
        f" {outcome.said}, {outcome.took_s:.1f} s; {where.described()}",
        flush=True,
    )
    for found in outcome.findings:
        print(f"  {found.kind.value.upper()}: {found.text}", flush=True)


def _keep(everything: Stage, seed: int, step: Step, outcome: Outcome) -> None:
    """What is needed to find out why."""
    kept = cache_folder() / "soak" / f"seed-{seed}-step-{step.number}"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    (kept / "step.txt").write_text(
        f"{step}\nmigration {outcome.migration_id}\n{outcome.operator}\n"
        + "".join(f"{found.kind.value}: {found.text}\n" for found in outcome.findings)
    )
    for daemon in everything.daemons.values():
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(daemon.state_directory, kept / daemon.name)
            shutil.copy(daemon.folder / "daemon.log", kept / f"{daemon.name}.log")
    for traveller in everything.travellers.values():
        for log in traveller.guest.folder.glob("*.log"):
            shutil.copy(log, kept / f"{traveller.name}-qemu-{log.name}")
        (kept / f"{traveller.name}.said").write_text("\n".join(traveller.guest.lines[-1000:]))
    print(f"journals and logs are in {kept}")
    print(f"to repeat: make soak SEED={seed} MINUTES=...; this step alone: FIRST={step.number}")


def main() -> int:
    """The command. 0: nothing was found; 1: something was, or the guests could not be started."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES)
    parser.add_argument("--seed", type=int, default=None, help="one of its own unless given")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="begin with step N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--qemu", choices=sorted(GENERATIONS), default="10.0")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    if not is_root():
        print("soak: needs root: real swap and memory cgroups", file=sys.stderr)
        return 1
    print(f"soak: seed {seed}, {arguments.minutes:g} minutes", flush=True)
    began_s = time.monotonic()
    try:
        with orderly_termination():
            tally = soak(GENERATIONS[arguments.qemu](), seed, arguments.minutes, arguments.first)
    except (LabError, PackageError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    result = {"seed": seed, "seconds": round(time.monotonic() - began_s), **tally.as_json()}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: each for key, each in result.items() if key != "by_fault"}))
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
