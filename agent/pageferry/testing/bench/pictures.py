"""The pictures: SVG files for the documents, drawn with matplotlib (the extra ``bench``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pageferry.testing.bench.results import Results, Run, Timeline
from pageferry.testing.bench.scenarios import MULTIFD, PAGEFERRY, QEMU

CONTENDERS = (PAGEFERRY, MULTIFD, QEMU)

NAMES = {PAGEFERRY: "pageferry", MULTIFD: "QEMU, multifd", QEMU: "QEMU, default"}

COLOURS = {PAGEFERRY: "#0072b2", MULTIFD: "#d55e00", QEMU: "#999999"}
"""Told apart by colour-blind readers too (Okabe and Ito)."""

RESIDENT, SWAPPED = "#0072b2", "#e69f00"

LEAST_RATE_SHARE = 0.001


class NoMatplotlibError(Exception):
    """matplotlib is not installed."""


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draw what the results allow into *folder*; returns the files. Raises NoMatplotlibError."""
    plot = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for scenario in results.titles:
        runs = {
            contender: run
            for contender in CONTENDERS
            if (run := results.typical(scenario, contender)) is not None and run.timelines
        }
        if PAGEFERRY not in runs:
            continue
        title = results.titles[scenario]
        pictures = {"throughput": _throughput}
        if scenario.startswith("overcommitted"):
            pictures = {"residency": _residency, "latency": _latency}
        elif scenario == "sparse":
            pictures = {"residency": _residency}
        elif scenario.startswith("busy"):
            pictures = {"throughput": _throughput, "latency": _latency}
        for name, draw in pictures.items():
            path = folder / f"{name}-{scenario}.svg"
            figure = draw(plot, runs, title)
            figure.savefig(path, metadata={"Date": None})
            plot.close(figure)
            drawn.append(path)
    return drawn


def pyplot() -> Any:
    """matplotlib, set up to draw the same in the same way each time. Raises NoMatplotlibError."""
    try:
        import matplotlib
    except ImportError as error:
        raise NoMatplotlibError("pip install 'pageferry[bench]' to draw pictures") from error
    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "pageferry",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
        }
    )
    from matplotlib import pyplot

    return pyplot


def _residency(plot: Any, runs: dict[str, Run], title: str) -> Any:
    """For each contender, both ends: resident and swapped memory, stacked, over time."""
    figure, axes = plot.subplots(
        *(2, len(runs)),
        figsize=(3.2 * len(runs), 4.6),
        sharey=True,
        sharex="col",
        squeeze=False,
        layout="constrained",
    )
    for column, (contender, run) in enumerate(runs.items()):
        for row, side in enumerate(("source", "destination")):
            axis = axes[row][column]
            _stack(axis, run, side)
            _mark(axis, run)
            if not row:
                axis.set_title(NAMES[contender])
            if not column:
                axis.set_ylabel(f"{side}, MiB")
        axes[1][column].set_xlabel("s")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.suptitle(f"Where the guest's memory is ({title})")
    return figure


def _stack(axis: Any, run: Run, side: str) -> None:
    host = run.timelines["host"]
    seen = [
        (at_s, resident, allocated)
        for at_s, resident, allocated in zip(
            host["at_s"],
            host[f"{side}_resident_mib"],
            host[f"{side}_allocated_mib"],
            strict=True,
        )
        if at_s is not None and resident is not None and allocated is not None
    ]
    if not seen:
        return
    times, resident, allocated = zip(*seen, strict=True)
    swapped = [most - part for most, part in zip(allocated, resident, strict=True)]
    axis.stackplot(
        times,
        resident,
        swapped,
        colors=(RESIDENT, SWAPPED),
        labels=("resident", "swapped"),
        linewidth=0,
    )


def _latency(plot: Any, runs: dict[str, Run], title: str) -> Any:
    """The guest's hot touches over time, one line each, the scale logarithmic."""
    figure, axis = plot.subplots(figsize=(8, 3.2), layout="constrained")
    for contender, run in runs.items():
        guest = run.timelines["guest"]
        axis.plot(*_known(guest, "hot_p99_us"), color=COLOURS[contender], label=NAMES[contender])
        _mark(axis, run, COLOURS[contender])
    axis.set_yscale("log")
    axis.set_xlabel("s since the migration began; dotted: its end")
    axis.set_ylabel("p99 of 64 hot touches, µs")
    axis.set_title(f"What the guest notices ({title})")
    axis.legend()
    return figure


def _throughput(plot: Any, runs: dict[str, Run], title: str) -> Any:
    """Bytes on the wire per second, over time."""
    figure, axis = plot.subplots(figsize=(8, 3.2), layout="constrained")
    for contender, run in runs.items():
        times, amounts = _known(run.timelines["host"], "wire_mib")
        rates = [
            (later - earlier) / max(end - begin, LEAST_RATE_SHARE)
            for earlier, later, begin, end in zip(
                amounts, amounts[1:], times, times[1:], strict=False
            )
        ]
        axis.step(times[1:], rates, where="pre", color=COLOURS[contender], label=NAMES[contender])
        _mark(axis, run, COLOURS[contender])
    axis.set_xlabel("s since the migration began; dotted: its end")
    axis.set_ylabel("MiB/s on the wire")
    axis.set_title(f"Throughput ({title})")
    axis.legend()
    return figure


def _mark(axis: Any, run: Run, colour: str = "black") -> None:
    axis.axvline(0, color="black", linewidth=0.6)
    axis.axvline(run.figures["total_s"], color=colour, linewidth=0.9, linestyle=":")


def _known(timeline: Timeline, name: str) -> tuple[Sequence[float], Sequence[float]]:
    pairs = [
        (at_s, value)
        for at_s, value in zip(timeline["at_s"], timeline[name], strict=True)
        if at_s is not None and value is not None
    ]
    return [at_s for at_s, _value in pairs], [value for _at_s, value in pairs]
