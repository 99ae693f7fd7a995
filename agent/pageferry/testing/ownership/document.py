"""The tables and diagrams of docs/ownership.md, made from the rules.

``python -m pageferry.testing.ownership.document docs/ownership.md`` brings the file up to date; a
test fails when it is not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

from pageferry.policy.ownership import RULES, DestinationStep, SourceStep, is_end
from pageferry.testing.ownership.checker import explore
from pageferry.testing.ownership.mutants import MUTANTS
from pageferry.testing.ownership.world import Physics

DOES: Final[Mapping[SourceStep | DestinationStep, str]] = {
    SourceStep.CARRY: "carries RAM; the guest runs here",
    SourceStep.HAND_OVER: "QEMU stops the guest; last round, device state",
    SourceStep.RECORD_COMMIT: "writes `commit`",
    SourceStep.SAY_COMMIT: "says Commit and waits for the answer",
    SourceStep.ASK: "asks the destination's agent what its journal says; the guest stays paused",
    SourceStep.RECORD_RECLAIMED: "writes `reclaimed`, with who gave their word, and when",
    SourceStep.TAKE_BACK: "QEMU: cancel, and cont if the guest ran",
    SourceStep.RECORD_KEPT: "writes `failed` (or `cancelled`)",
    SourceStep.RECORD_GIVEN_AWAY: "writes `completed`",
    SourceStep.RECORD_LOST: "writes `completed`, with the note that the guest was lost there",
    SourceStep.KEPT: "end: the guest is the source's",
    SourceStep.GIVEN_AWAY: "end: the guest is the destination's",
    SourceStep.LOST: "end: it was the destination's, whose QEMU ended; kept paused here",
    SourceStep.LEFT_OPEN: "end of this process: what is left is settled from the journal",
    DestinationStep.RECEIVE: "places RAM; QEMU waits, empty",
    DestinationStep.LOAD: "QEMU loads its devices",
    DestinationStep.RECORD_LOADED: "writes `loaded`",
    DestinationStep.AWAIT_COMMIT: "says DeviceLoaded and waits for Commit",
    DestinationStep.RECORD_COMMITTED: "writes `committed`",
    DestinationStep.RUN: "QEMU: cont, for the first time",
    DestinationStep.RUN_AGAIN: "after a restart; QEMU: cont, unless it has run already",
    DestinationStep.RECORD_RUNNING: "writes `running`",
    DestinationStep.RECORD_REFUSED: "writes `refused`",
    DestinationStep.RECORD_LOST: "writes `lost`",
    DestinationStep.END_QEMU: "QEMU: quit, and waits until it is gone",
    DestinationStep.RECORD_ABORTED: "writes `aborted`",
    DestinationStep.TAKEN: "end: says Running; the guest is here",
    DestinationStep.NEVER: "end: says Aborted or CommitFailed; the guest never runs here",
    DestinationStep.LOST: "end: QEMU ended after `committed`; the guest may have run here",
    DestinationStep.LEFT_OPEN: "end of this process: what is left is settled from the journal",
}
"""What is done in each step, in words."""


def table(rows: Iterable[tuple[str, ...]], *heads: str) -> str:
    """A Markdown table."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


Row = Mapping[Enum, Enum]


def _side(source: bool) -> tuple[Mapping[Enum, Row], tuple[SourceStep | DestinationStep, ...]]:
    rules: Mapping[Any, Any] = RULES.source if source else RULES.destination
    return rules, tuple(SourceStep) if source else tuple(DestinationStep)


def _steps(source: bool) -> str:
    rules, steps = _side(source)
    rows = []
    for step in steps:
        then = "; ".join(
            f"{event.value} → **{after.value}**" for event, after in rules.get(step, {}).items()
        )
        rows.append((f"**{step.value}**", DOES[step], then or "—"))
    return table(rows, "step", "what is done", "what may come of it → next step")


def _diagram(source: bool) -> str:
    rules, steps = _side(source)
    first = SourceStep.CARRY if source else DestinationStep.RECEIVE
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {_id(first)}"]
    for step, row in rules.items():
        by_target: dict[Enum, list[str]] = {}
        for event, after in row.items():
            by_target.setdefault(after, []).append(event.value)
        for after, events in by_target.items():
            lines.append(f"    {_id(step)} --> {_id(after)}: {', '.join(events)}")
    lines += [f"    {_id(step)} --> [*]" for step in steps if is_end(step)]
    return "\n".join([*lines, "```"])


def _id(step: Enum) -> str:
    return str(step.value).replace("-", "_")


def _resumes() -> str:
    rows = [
        ("source", f"`{phase.value}`", f"**{step.value}**", DOES[step])
        for phase, step in RULES.source_resumes_at.items()
    ]
    rows += [
        ("destination", f"`{phase.value}`", f"**{place.value}**", DOES[place])
        for phase, place in RULES.destination_resumes_at.items()
    ]
    return table(rows, "side", "last phase in the journal", "goes on with", "which is")


def _told() -> str:
    rows = [(f"`{phase}`", event.value) for phase, event in RULES.told.items()]
    rows.append(("any other, or none", "told-undecided"))
    return table(rows, "the destination's journal says", "to the source that means")


def _explored() -> str:
    with_loss = explore(Physics(journal_can_be_lost=True))
    whole = explore()
    assert whole.violation is None
    assert with_loss.violation is None
    rows = [
        ("all faults", str(whole.states), str(whole.transitions), str(whole.ends)),
        (
            "and the destination's state directory lost (never two owners only)",
            str(with_loss.states),
            str(with_loss.transitions),
            "—",
        ),
    ]
    return table(rows, "world", "states", "moves", "good ends")


def _mutants() -> str:
    return "\n".join(f"- {name}" for name in MUTANTS)


SECTIONS: Final[Mapping[str, Callable[[], str]]] = {
    "source diagram": lambda: _diagram(True),
    "source steps": lambda: _steps(True),
    "destination diagram": lambda: _diagram(False),
    "destination steps": lambda: _steps(False),
    "resumes": _resumes,
    "told": _told,
    "explored": _explored,
    "mutants": _mutants,
}

_SECTION = re.compile(r"<!-- made: (?P<name>[a-z ]+) -->\n.*?<!-- end -->", re.DOTALL)


def brought_up_to_date(text: str) -> str:
    """*text* with all its made sections made anew. Raises KeyError on a section nobody knows."""

    def made(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- made: {name} -->\n{SECTIONS[name]()}\n<!-- end -->"

    return _SECTION.sub(made, text)


def main() -> None:
    """Bring the file named on the command line up to date."""
    path = Path(sys.argv[1])
    path.write_text(brought_up_to_date(path.read_text()))


if __name__ == "__main__":
    main()
