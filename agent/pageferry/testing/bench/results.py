"""The results of a bench and their JSON. Pure: text in, values out.

Figures are numbers with their unit in the name; None where one does not apply. A timeline is a
list of numbers for each name in it, the seconds from the start of the migration under ``at_s``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pageferry.testing.bench.order import RunKey
from pageferry.testing.bench.statistics import Summary, middle, summary

FORMAT = 1
"""Changes when a reader of older files would misunderstand newer ones."""

Timeline = dict[str, list[float | None]]


@dataclass(frozen=True, slots=True)
class Run:
    """One migration, or one measurement of a limit (its contender is then ``limit``)."""

    scenario: str
    contender: str
    number: int
    completed: bool
    error: str
    memory_is_right: bool
    figures: Mapping[str, float | None]
    timelines: Mapping[str, Timeline] = field(default_factory=dict)

    @property
    def key(self) -> RunKey:
        """Which run it is."""
        return RunKey(self.scenario, self.contender, self.number)


@dataclass(slots=True)
class Results:
    """All runs so far, and what they were made on and with. `titles`: of the scenarios."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    titles: dict[str, str]
    runs: list[Run] = field(default_factory=list)
    finished: bool = False

    def has(self, key: RunKey) -> bool:
        """Whether this run has been made."""
        return any(run.key == key for run in self.runs)

    def of(self, scenario: str, contender: str) -> list[Run]:
        """The runs of one contender, in order."""
        found = [r for r in self.runs if (r.scenario, r.contender) == (scenario, contender)]
        return sorted(found, key=lambda run: run.number)

    def contenders(self, scenario: str) -> list[str]:
        """Who has run in this scenario, in the order of their first runs."""
        return list(dict.fromkeys(run.contender for run in self.runs if run.scenario == scenario))

    def figure(self, scenario: str, contender: str, name: str) -> Summary | None:
        """One figure over the runs that completed."""
        runs = [run for run in self.of(scenario, contender) if run.completed]
        return summary(run.figures.get(name) for run in runs)

    def median(self, scenario: str, contender: str, name: str) -> float | None:
        """Its median; None without a run that completed and has it."""
        found = self.figure(scenario, contender, name)
        return None if found is None else found.median

    def typical(self, scenario: str, contender: str) -> Run | None:
        """The run with the median total time; one that did not complete when none did."""
        runs = self.of(scenario, contender)
        runs = [run for run in runs if run.completed] or runs
        if not runs:
            return None
        return runs[middle([run.figures.get("total_s") or 0.0 for run in runs])]

    @property
    def wrong_memory(self) -> list[Run]:
        """Runs after which the guest found a wrong byte."""
        return [run for run in self.runs if not run.memory_is_right]


def to_json(results: Results) -> str:
    """The results as a JSON text."""
    document = {
        "format": FORMAT,
        "finished": results.finished,
        "machine": results.machine,
        "settings": results.settings,
        "titles": results.titles,
        "runs": [asdict(run) for run in results.runs],
        "medians": [_median_entry(results, *pair) for pair in _pairs(results.runs)],
    }
    return json.dumps(document, indent=1) + "\n"


def from_json(text: str) -> Results:
    """The results that `to_json` wrote. ValueError when it is something else, or another format."""
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"not results of a bench in format {FORMAT}")
    try:
        return Results(
            machine=document["machine"],
            settings=document["settings"],
            titles=document["titles"],
            runs=[Run(**run) for run in document["runs"]],
            finished=document["finished"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not results of a bench: {error}") from error


def to_continue(text: str | None, settings: Mapping[str, Any]) -> Results | None:
    """The unfinished results in *text* when they were made with just these settings, else None."""
    if text is None:
        return None
    try:
        found = from_json(text)
    except ValueError:
        return None
    return None if found.finished or found.settings != dict(settings) else found


def _pairs(runs: Iterable[Run]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((run.scenario, run.contender) for run in runs))


def _median_entry(results: Results, scenario: str, contender: str) -> dict[str, Any]:
    runs = results.of(scenario, contender)
    names = dict.fromkeys(name for run in runs for name in run.figures)
    return {
        "scenario": scenario,
        "contender": contender,
        "runs": len(runs),
        "completed": sum(run.completed for run in runs),
        "figures": {name: results.median(scenario, contender, name) for name in names},
    }
