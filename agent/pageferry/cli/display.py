"""The live display of one migration on a terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pageferry.cli.output import duration, size
from pageferry.control.info import MigrationInfo

PHASES: Final = ("look", "arm", "cold", "resident", "rounds", "switchover", "commit", "done")
"""The phases of a source in their order."""

ARRIVING_PHASES: Final = ("look", "receiving", "switchover", "commit", "done")
"""Those of a destination, which does not know how much is still to come."""

RATE_MS: Final = 1000
"""Time over which rates are taken: shorter ones jump about."""

_TITLES: Final = {
    "look": "looking at the guest",
    "arm": "arming write tracking",
    "cold": "cold pass (swapped memory)",
    "resident": "resident pass",
    "rounds": "rounds",
    "receiving": "receiving",
    "switchover": "switchover",
    "device": "switchover",
    "commit": "commit",
    "done": "done",
}


class PhaseProgress:
    """Where the migration is. Never runs backwards, whatever order the reports come in."""

    def __init__(self) -> None:
        self._place = (0, 0)
        self._phases: tuple[str, ...] = PHASES
        self._phase = PHASES[0]
        self._fraction = 0.0

    @property
    def fraction(self) -> float:
        """How much of the phase (of the round, in rounds) is done, 0 to 1."""
        return self._fraction

    @property
    def title(self) -> str:
        """The phase, as a person says it."""
        number, round_number = self._place
        title = _TITLES.get(self._phase, self._phase)
        if self._phase == "rounds":
            title = f"round {round_number}"
        return f"{number + 1}/{len(self._phases)} {title}"

    def update(self, info: MigrationInfo) -> None:
        """Take in a report; one from an earlier phase or round changes nothing."""
        phase = "switchover" if info.phase == "device" else info.phase
        if info.role == "destination":
            self._phases = ARRIVING_PHASES
        if phase not in self._phases:
            return
        place = (self._phases.index(phase), info.rounds if phase == "rounds" else 0)
        if place < self._place:
            return
        fraction = 0.0
        if info.phase_total_bytes > 0:
            fraction = min(1.0, info.phase_done_bytes / info.phase_total_bytes)
        if phase == "done":
            fraction = 1.0
        self._fraction = max(self._fraction, fraction) if place == self._place else fraction
        self._place, self._phase = place, phase


class SwapRates:
    """Bytes per second that the migration pages in and out, over the last second or so."""

    def __init__(self) -> None:
        self._mark = (0, 0, 0)
        self.in_bytes_per_s = 0.0
        self.out_bytes_per_s = 0.0

    def update(self, info: MigrationInfo) -> None:
        """Take in a report."""
        time_ms, paged_in, paged_out = self._mark
        since_ms = info.total_time_ms - time_ms
        if since_ms >= RATE_MS:
            self.in_bytes_per_s = max(0, info.paged_in_bytes - paged_in) * 1000 / since_ms
            self.out_bytes_per_s = max(0, info.paged_out_bytes - paged_out) * 1000 / since_ms
            self._mark = (info.total_time_ms, info.paged_in_bytes, info.paged_out_bytes)


class LiveDisplay:
    """Draws a migration in place, from `start` to `stop`; both may be called again."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = PhaseProgress()
        self._swap = SwapRates()
        self._live: Live | None = None

    def start(self) -> None:
        """Begin to draw, below what was printed before."""
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()

    def show(self, info: MigrationInfo) -> None:
        """Draw *info*; while stopped only remember how far it has come."""
        self._progress.update(info)
        self._swap.update(info)
        if self._live is not None:
            self._live.update(render(info, self._progress, self._swap), refresh=True)

    def stop(self) -> None:
        """Leave the terminal, cursor and all, to others."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def render(
    info: MigrationInfo, progress: PhaseProgress, swap: SwapRates | None = None
) -> RenderableType:
    """The picture: a headline, the bar of the phase, and the numbers.

    Without *swap* there is no rate of swap traffic, as for a migration that is only looked at once.
    """
    headline = Text.assemble(
        (info.guest, "bold"),
        f" to {info.destination or 'this host'}  ",
        (info.status, _colour(info)),
        f"  {duration(info.total_time_ms)}",
    )
    bar = Table.grid(padding=(0, 1))
    bar.add_column(min_width=34)
    bar.add_column(width=40)
    bar.add_column(justify="right")
    bar.add_row(
        progress.title,
        ProgressBar(total=1.0, completed=progress.fraction),
        f"{progress.fraction:4.0%}",
    )
    return Group(headline, bar, _numbers(info, swap))


def _numbers(info: MigrationInfo, swap: SwapRates | None) -> Table:
    rate_bytes = info.pages_per_second * info.page_bytes
    dirty_bytes = info.dirty_pages_per_second * info.page_bytes
    grid = Table.grid(padding=(0, 2))
    sent = "received" if info.role == "destination" else "sent"
    grid.add_row(sent, size(info.transferred_bytes), "rate", f"{size(rate_bytes)}/s")
    if info.role != "destination":
        grid.add_row("remaining", size(info.remaining_bytes), "dirtied", f"{size(dirty_bytes)}/s")
    paged_in, paged_out = size(info.paged_in_bytes), size(info.paged_out_bytes)
    if swap is not None and not info.is_final:
        paged_in += f", {size(swap.in_bytes_per_s)}/s"
        paged_out += f", {size(swap.out_bytes_per_s)}/s"
    grid.add_row("paged in", paged_in, "paged out", paged_out)
    if info.role == "destination":
        grid.add_row("rounds", str(info.rounds))
    else:
        grid.add_row("rounds", str(info.rounds), *_downtime(info))
    return grid


def _downtime(info: MigrationInfo) -> tuple[str, str]:
    if info.downtime_ms is not None:
        return "downtime", duration(info.downtime_ms)
    if info.expected_downtime_ms is not None:
        return "expected downtime", duration(info.expected_downtime_ms)
    return "expected downtime", "not known yet"


def _colour(info: MigrationInfo) -> str:
    if info.status == "completed":
        return "green"
    return "red" if info.is_final else "yellow"
