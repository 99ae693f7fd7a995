"""`make bench`: measure, print tables, write JSON, draw pictures.

The results are written after every run. When a bench was interrupted, the next one with the same
settings goes on where it stopped. Exit status 0 only when every run could be made and no guest
found a wrong byte.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pageferry.testing.bench.locking import locked
from pageferry.testing.bench.machine import machine, machine_text, revision
from pageferry.testing.bench.order import RunKey, interleaved
from pageferry.testing.bench.pictures import NoMatplotlibError, draw_all
from pageferry.testing.bench.results import Results, Run, to_continue, to_json
from pageferry.testing.bench.running import LIMIT, run_limit, run_migration
from pageferry.testing.bench.scenarios import CONNECTIONS, Scenario, scenarios
from pageferry.testing.bench.tables import FILE_WIDTH, as_markdown, as_rich, memory_grid, speed_grid
from pageferry.testing.lab.cache import cache_folder
from pageferry.testing.lab.cleanup import LabError, orderly_termination
from pageferry.testing.lab.hosts import is_root
from pageferry.testing.lab.packages import PackageError, qemu_10
from pageferry.testing.lab.swap import some_swap

RUNS = 3

TRIES = 2
"""A run that cannot be set up is tried once more: reclaim may be too slow to settle a guest."""


class Bench:
    """The runs still to be made of some scenarios, and where their results go."""

    def __init__(
        self, chosen: Sequence[Scenario], results: Results, file: Path, lock: Path | None
    ) -> None:
        self._chosen = chosen
        self._results = results
        self._file = file
        self._lock = lock
        self._console = Console()

    def run(self) -> list[str]:
        """Make them; returns what could not be made, and why."""
        failures = []
        runs = int(self._results.settings["runs"])
        for scenario in self._chosen:
            contenders = (LIMIT, *scenario.contenders)
            keys = [
                key
                for key in interleaved(scenario.name, contenders, runs, scenario.once)
                if not self._results.has(key)
            ]
            if keys:
                self._console.print(f"[bold]{scenario.name}[/bold]: {scenario.title}")
                with locked(self._lock), some_swap():
                    failures += self._make_all(scenario, keys)
        if not failures:
            self._results.finished = True
        self._write()
        return failures

    def _make_all(self, scenario: Scenario, keys: Sequence[RunKey]) -> list[str]:
        failures = []
        for key in keys:
            try:
                self._make(scenario, key)
            except LabError as error:
                failures.append(f"{key.scenario}, {key.contender}: {error}")
                self._console.print(f"  {key.contender}: {error}", style="red")
        return failures

    def _make(self, scenario: Scenario, key: RunKey) -> None:
        began_s = time.monotonic()
        for left in reversed(range(TRIES)):
            try:
                run = _run(scenario, key)
                break
            except LabError:
                if not left:
                    raise
        if run is None:
            return
        self._results.runs.append(run)
        self._write()
        self._say(run, time.monotonic() - began_s)

    def _say(self, run: Run, took_s: float) -> None:
        outcome = f"{run.figures['total_s']:.2f} s" if run.completed else run.error
        style = None
        if not run.memory_is_right:
            outcome, style = f"{outcome}: THE GUEST FOUND WRONG MEMORY", "bold red"
        self._console.print(
            f"  {run.contender}: {outcome} [dim](all in all {took_s:.0f} s)[/dim]", style=style
        )

    def _write(self) -> None:
        fresh = self._file.with_name(f"{self._file.name}.new")
        fresh.write_text(to_json(self._results))
        fresh.rename(self._file)


def _run(scenario: Scenario, key: RunKey) -> Run | None:
    if key.contender == LIMIT:
        return run_limit(scenario, key.number)
    return run_migration(scenario, key)


def markdown_of(results: Results, pictures: Sequence[str] = ()) -> str:
    """The tables for the documents, with what they were measured on. *pictures*: their paths, as
    seen from the document.
    """
    settings = results.settings
    parts = [
        "<!-- Written by `make bench TABLES=FILE`. -->",
        f"Measured on {machine_text(results.machine)}; pageferry {settings['revision']};"
        f" {settings['connections']} connections; medians of {settings['runs']} run(s).",
    ]
    if settings["quick"]:
        parts.append("**Provisional**: a quick bench, with smaller guests and one run of each.")
    guests = [f"- **{name}**: {title}" for name, title in results.titles.items()]
    parts.append("\n".join(guests))
    for grid in (speed_grid(results), memory_grid(results)):
        parts += [f"### {grid.title}", as_markdown(grid).rstrip()]
    parts += [f"![{Path(picture).stem}]({picture})" for picture in pictures]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``make bench``. Returns the exit status."""
    options = _parser().parse_args(arguments)
    if not is_root():
        print(
            "the bench swaps, makes cgroups and network namespaces: run it as root", file=sys.stderr
        )
        return 1
    try:
        with orderly_termination():
            return _bench(options)
    except (LabError, PackageError) as error:
        print(f"the bench could not be set up: {error}", file=sys.stderr)
        return 1


def _bench(options: argparse.Namespace) -> int:
    binary = qemu_10()
    chosen = _chosen(scenarios(binary, quick=options.quick), options.only)
    runs = options.runs or (1 if options.quick else RUNS)
    settings = {
        "quick": options.quick,
        "runs": runs,
        "connections": CONNECTIONS,
        "revision": revision(),
        "scenarios": [scenario.name for scenario in chosen],
    }
    file = options.json or cache_folder() / f"bench{'-quick' if options.quick else ''}.json"
    text = file.read_text() if file.exists() and not options.fresh else None
    results = to_continue(text, settings)
    if results is None:
        titles = {scenario.name: scenario.title for scenario in chosen}
        results = Results(machine(binary), settings, titles)
    else:
        print(f"going on with {file}: {len(results.runs)} runs are made")
    failures = Bench(chosen, results, file, options.lock).run()
    _show(results, options)
    for line in failures:
        print(f"could not be measured: {line}", file=sys.stderr)
    for run in results.wrong_memory:
        print(f"WRONG MEMORY after {run.key}: this is a bug, please report it", file=sys.stderr)
    return 1 if failures or results.wrong_memory else 0


def _show(results: Results, options: argparse.Namespace) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    console.print(machine_text(results.machine))
    for grid in (speed_grid(results), memory_grid(results)):
        console.print(as_rich(grid))
    drawn = []
    if options.pictures is not None:
        try:
            drawn = draw_all(results, options.pictures)
        except NoMatplotlibError as error:
            print(f"no pictures: {error}", file=sys.stderr)
    if options.tables is not None:
        seen = [os.path.relpath(path, options.tables.parent) for path in drawn]
        options.tables.write_text(markdown_of(results, seen))


def _chosen(known: Sequence[Scenario], names: str | None) -> list[Scenario]:
    if names is None:
        return list(known)
    wanted = names.split(",")
    unknown = set(wanted) - {scenario.name for scenario in known}
    if unknown:
        raise LabError(
            f"there is no scenario {', '.join(sorted(unknown))}: choose of"
            f" {', '.join(scenario.name for scenario in known)}"
        )
    return [scenario for scenario in known if scenario.name in wanted]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short run of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw SVG files there")
    parser.add_argument("--only", metavar="NAME,...", help="only these scenarios")
    parser.add_argument("--runs", type=int, metavar="N", help=f"runs of each ({RUNS}; quick: 1)")
    parser.add_argument("--fresh", action="store_true", help="do not go on with unfinished results")
    parser.add_argument(
        "--lock",
        type=Path,
        metavar="FILE",
        help="hold this lock (flock) for each scenario: for a machine on which others measure too",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
