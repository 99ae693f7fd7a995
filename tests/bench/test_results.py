"""The bench's arithmetic, order, JSON and tables."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.testing.bench.figures import longest_silence_s
from pageferry.testing.bench.order import RunKey, interleaved
from pageferry.testing.bench.results import Results, Run, from_json, to_continue, to_json
from pageferry.testing.bench.scale.main import cost_grid
from pageferry.testing.bench.statistics import middle, rate_between, ratio, summary
from pageferry.testing.bench.tables import (
    NOTHING,
    as_markdown,
    as_rich,
    memory_grid,
    share_of_limit,
    speed_grid,
)

SETTINGS = {"quick": False, "runs": 3, "revision": "abc"}


def run(
    contender: str, number: int, total_s: float, scenario: str = "idle", **more: float | None
) -> Run:
    figures: dict[str, float | None] = {"total_s": total_s, **more}
    return Run(scenario, contender, number, True, "", True, figures)


@pytest.fixture
def results() -> Results:
    found = Results({"date": "2026-01-01"}, dict(SETTINGS), {"idle": "an idle guest"})
    found.runs += [
        run("limit", 0, 0.5, rate_mib_per_s=1000.0, data_mib=500.0),
        *(run("pageferry", n, s, data_mib=500.0) for n, s in enumerate((1.0, 9.0, 2.0))),
        *(run("qemu-multifd", n, s, data_mib=500.0) for n, s in enumerate((4.0, 4.0, 3.0))),
    ]
    return found


def test_runs_are_interleaved_and_each_is_made_once() -> None:
    keys = list(interleaved("s", "ABC", 3))
    assert "".join(key.contender for key in keys) == "ABCCBAABC"
    assert len(set(keys)) == 9


def test_a_slow_contender_takes_part_once() -> None:
    keys = list(interleaved("s", "ABC", 3, once={"B"}))
    assert "".join(key.contender for key in keys) == "ABCCAAC"


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_median_lies_within_the_range(values: list[float]) -> None:
    found = summary([*values, None])
    assert found is not None
    assert found.least <= found.median <= found.most
    assert found.runs == len(values)
    shown = values[middle(values)]
    assert sum(value < shown for value in values) <= len(values) / 2
    assert sum(value > shown for value in values) <= len(values) / 2


def test_what_is_missing_stays_missing() -> None:
    assert summary([None]) is None
    assert ratio(None, 1) is None
    assert ratio(1, None) is None
    assert ratio(1, 0) is None
    assert ratio(3, 2) == 1.5
    with pytest.raises(ValueError, match="no runs"):
        middle([])


def test_rate_leaves_start_and_tail_out() -> None:
    # 10 s of waiting, 100 a second from 0 to 1000, 10 s for the last 10.
    times = [0.0, 10.0, *(10.0 + n for n in range(1, 11)), 30.0]
    amounts = [0.0, 0.0, *(100.0 * n for n in range(1, 11)), 1010.0]
    assert rate_between(times, amounts, 0.1, 0.9) == pytest.approx(100)
    assert rate_between([0.0, 1.0], [5.0, 5.0], 0.1, 0.9) is None
    assert rate_between([0.0, 1.0], [0.0, 5.0], 0.1, 0.9) is None
    assert rate_between([], [], 0.1, 0.9) is None


def test_silence_is_what_exceeds_the_usual_pause() -> None:
    times = [0.0, 0.1, 0.2, 0.75, 0.85, 3.0]
    assert longest_silence_s(times, 0.15, 1.0) == pytest.approx(0.45)
    assert longest_silence_s(times, 0.5, 0.8) == pytest.approx(0.45)
    assert longest_silence_s(times, 0.8, 0.9) == 0
    assert longest_silence_s([], 0, 1) == 0


def test_json_comes_back_as_it_went(results: Results) -> None:
    results.runs[1] = replace(results.runs[1], timelines={"host": {"at_s": [0.1, None]}})
    text = to_json(results)
    assert from_json(text) == results
    medians = {
        (entry["scenario"], entry["contender"]): entry for entry in json.loads(text)["medians"]
    }
    entry = medians["idle", "pageferry"]
    assert entry["figures"]["total_s"] == 2.0
    assert (entry["runs"], entry["completed"]) == (3, 3)


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": 0}', '{"format": 1, "runs": [{}]}', "x"])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(text)


def test_only_unfinished_results_with_the_same_settings_are_continued(results: Results) -> None:
    text = to_json(results)
    continued = to_continue(text, SETTINGS)
    assert continued == results
    assert continued is not None
    assert continued.has(RunKey("idle", "pageferry", 2))
    assert not continued.has(RunKey("idle", "qemu", 0))
    assert to_continue(text, {**SETTINGS, "revision": "other"}) is None
    results.finished = True
    assert to_continue(to_json(results), SETTINGS) is None
    assert to_continue("not JSON", SETTINGS) is None
    assert to_continue(None, SETTINGS) is None


def test_runs_that_did_not_complete_count_for_nothing_but_themselves(results: Results) -> None:
    results.runs.append(
        replace(run("pageferry", 3, 0.1), completed=False, error="gave up", memory_is_right=False)
    )
    assert results.median("idle", "pageferry", "total_s") == 2.0
    assert [one.number for one in results.wrong_memory] == [3]
    typical = results.typical("idle", "pageferry")
    assert typical is not None
    assert typical.number == 2
    cells = {row[1]: row for row in speed_grid(results).rows}
    assert cells["pageferry"][2] == "4, 1 did not end"


def test_table_has_ratios_to_multifd_and_to_the_limit(results: Results) -> None:
    grid = speed_grid(results)
    rows = {row[1]: dict(zip(grid.headings, row, strict=True)) for row in grid.rows}
    assert list(rows) == ["pageferry", "qemu-multifd", "limit"]
    assert rows["pageferry"]["× multifd"] == "0.50"
    assert rows["pageferry"]["of the limit"] == "0.25"
    assert rows["limit"]["of the limit"] == NOTHING
    assert rows["pageferry"]["downtime, ms"] == NOTHING
    lines = as_markdown(grid).splitlines()
    assert len(lines) == 2 + len(grid.rows)
    assert len({line.count("|") for line in lines}) == 1
    assert as_rich(grid).row_count == len(grid.rows)


def test_limit_of_paging_is_for_what_was_swapped(results: Results) -> None:
    results.titles["overcommitted"] = "an overcommitted guest"
    name = "overcommitted"
    results.runs += [
        run("limit", 0, 4.0, name, rate_mib_per_s=100.0, swap_in_mib=400.0),
        run("pageferry", 0, 8.0, name, cold_mib=400.0, data_mib=9999.0),
    ]
    assert share_of_limit(results, name, "pageferry") == pytest.approx(0.5)
    assert [row[:2] for row in memory_grid(results).rows] == [[name, "pageferry"]]


def test_cost_of_a_further_gib_leaves_out_what_does_not_grow() -> None:
    rows = [{"size_gib": 1.0, "a": 12.0}, {"size_gib": 101.0, "a": 212.0}]
    grid = cost_grid(rows, {"a": "A", "b": "B"}, "title", {"size_gib": 1.0, "a": 7.0})
    assert grid.rows == [["A", "12.00", "212.00", "2.000", "7.00"]]
