"""The pictures of docs/concepts.md: one migration of an overcommitted guest, looked at closely.

``python -m pageferry.testing.bench.concepts docs/img`` (``make concept-pictures``) runs what an
operator would run (``pageferry residency``, ``estimate`` and ``migrate``) on two daemons and two
QEMUs of its own, and draws what they said: where the guest's memory was on either host, and the
course of the migration, with the latency that the guest felt. It prints the estimate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pageferry.testing.bench.pictures import NoMatplotlibError, pyplot
from pageferry.testing.lab.carrying import GUEST_NAME, daemons_for
from pageferry.testing.lab.cleanup import LabError, orderly_termination
from pageferry.testing.lab.daemons import LabDaemon
from pageferry.testing.lab.guests import FreestandingGuest
from pageferry.testing.lab.hosts import is_root
from pageferry.testing.lab.latency import percentile_us
from pageferry.testing.lab.packages import PackageError, qemu_10
from pageferry.testing.lab.settled import overcommitted_plan, settled_pair
from pageferry.testing.lab.swap import some_swap

MIB = 1 << 20

MAP_CELLS = 128 * 48
"""Parts that the guest's RAM is cut into on the maps: 1 GiB in cells of 43 pages."""

AROUND_S = 3.0
"""Of the guest's life before and after the migration that is drawn with it."""

COLOURS = {
    "cold": "#e69f00",
    "resident": "#56b4e9",
    "rounds": "#bbbbbb",
    "switchover": "#d55e00",
}
"""Phases, as bands behind the curves."""

TITLES = {"cold": "cold pass", "resident": "resident pass", "rounds": "rounds"}

OPTIONS = ("--max-bandwidth", "125M", "--downtime-limit", "150")
"""A link of 1 Gbit/s: over loopback there would be a single round, and nothing to see."""

Info = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Course:
    """What was said while the guest was carried, by seconds since the command."""

    reports: Sequence[tuple[float, Info]]
    latency_us: Sequence[tuple[float, float]]
    final: Info

    @property
    def total_s(self) -> float:
        """How long it took."""
        return float(self.final["total-time"]) / 1000


def carried(guest: FreestandingGuest, source: LabDaemon, destination: LabDaemon) -> Course:
    """Migrate, and listen. Raises LabError when it does not complete."""
    guest.wait_samples(int(AROUND_S * 10))
    command = source.cli("migrate", GUEST_NAME, destination.address, "--json", *OPTIONS)
    heard: list[tuple[float, Info]] = []
    final: Info = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if said["event"] == "status" and "total-time" in said["info"]:
                heard.append((time.monotonic(), said["info"]))
            elif said["event"] == "finished":
                final = said["info"] or {}
    if process.returncode or final.get("status") != "completed":
        raise LabError(
            f"the migration did not complete: {final.get('error') or process.returncode}"
        )
    guest.wait_samples(int(AROUND_S * 10))
    # The migration's own clock: the command takes a moment to start.
    began_s = min(at_s - info["total-time"] / 1000 for at_s, info in heard)
    reports = [(info["total-time"] / 1000, info) for _at_s, info in heard]
    return Course(reports, _latency(guest, began_s), final)


def _latency(guest: FreestandingGuest, began_s: float) -> list[tuple[float, float]]:
    khz = guest.layout.tsc_khz
    found = []
    for sample in list(guest.samples):
        p99_us = percentile_us([sample], 0.99, khz)
        at_s = sample.host_time_s - began_s
        if p99_us is not None and at_s >= -AROUND_S:
            found.append((at_s, p99_us))
    return found


def phases(course: Course) -> list[tuple[str, float, float]]:
    """Each phase with its beginning and end, as far as reports came while it lasted."""
    found: list[tuple[str, float, float]] = []
    for at_s, info in course.reports:
        phase = str(info["phase"])
        name = "switchover" if phase in ("device", "commit") else phase
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1], at_s)
        else:
            if found:
                found[-1] = (*found[-1][:2], at_s)
            found.append((name, at_s, at_s))
    if found:
        found[-1] = (*found[-1][:2], course.total_s)
    return found


def draw(course: Course, path: Path) -> None:
    """The course of the migration. Raises NoMatplotlibError."""
    plot = pyplot()
    figure, (memory, latency) = plot.subplots(
        *(2, 1), figsize=(8, 5.6), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    for axis in (memory, latency):
        for name, begin_s, end_s in phases(course):
            if name in COLOURS:
                label = TITLES[name] if axis is memory else None
                axis.axvspan(begin_s, end_s, color=COLOURS[name], alpha=0.3, lw=0, label=label)
        stopped_s = course.total_s - float(course.final["downtime"]) / 1000
        axis.axvspan(stopped_s, course.total_s, color=COLOURS["switchover"], lw=0)
    times = [at_s for at_s, _info in course.reports]

    def line(table: str, key: str) -> list[float]:
        return [(info.get(table) or {}).get(key, 0) / MIB for _s, info in course.reports]

    memory.plot(
        *(times, line("residency", "paged-in-bytes")),
        **{"color": COLOURS["cold"], "linewidth": 4, "label": "paged in"},
    )
    memory.plot(
        *(times, line("residency", "paged-out-bytes")),
        **{"color": "#0072b2", "linewidth": 1.5, "label": "paged out again"},
    )
    memory.plot(
        times, line("ram", "transferred"), color="black", linestyle="--", label="sent so far"
    )
    memory.plot(times, line("ram", "remaining"), color="#d55e00", label="left of the pass or round")
    memory.set_ylabel("MiB")
    memory.set_title("A migration, as its source reports it; red: the guest stands still")
    memory.legend(ncols=2, loc="upper left")
    latency.plot(*zip(*course.latency_us, strict=True), color="black", linewidth=0.8)
    latency.set_yscale("log")
    latency.set_ylabel("p99 of 64 hot touches, µs")
    latency.set_xlabel("s since the migration began")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plot.close(figure)


def main() -> int:
    """Entry point. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder = parser.parse_args().folder
    if not is_root():
        print("this swaps, makes cgroups and traces QEMU: run it as root", file=sys.stderr)
        return 1
    try:
        pyplot()
        with orderly_termination(), some_swap():
            _make(folder)
    except (LabError, PackageError, NoMatplotlibError) as error:
        print(f"the pictures could not be made: {error}", file=sys.stderr)
        return 1
    return 0


def _make(folder: Path) -> None:
    plan = overcommitted_plan(qemu_10())
    with settled_pair(plan) as guest, daemons_for(guest) as (source, destination):
        _map(source, folder / "map-source-before.svg")
        print(_cli(source, "estimate", GUEST_NAME))
        course = carried(guest, source, destination)
        _map(destination, folder / "map-destination-after.svg")
        draw(course, folder / "migration.svg")
        print(json.dumps(course.final, indent=2))
        if guest.verify().bad:
            raise LabError("the guest found wrong memory: this is a bug, please report it")


def _map(daemon: LabDaemon, path: Path) -> None:
    cells = ("--cells", str(MAP_CELLS), "--output", str(path))
    print(_cli(daemon, "residency", GUEST_NAME, *cells))


def _cli(daemon: LabDaemon, *arguments: str) -> str:
    done = daemon.run_cli(*arguments)
    if done.returncode:
        raise LabError(f"pageferry {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
