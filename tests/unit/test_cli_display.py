"""The picture of a migration: right, and never running backwards."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from pageferry.cli.display import PHASES, PhaseProgress, SwapRates, render
from pageferry.cli.doctor_cmd import worst
from pageferry.cli.exit_codes import ExitCode, of_migration
from pageferry.cli.output import console, duration, size
from pageferry.cli.presenting import QUESTION
from pageferry.control.info import Check, MigrationInfo


def info(
    phase: str, done: int = 0, total: int = 100, rounds: int = 0, **more: Any
) -> MigrationInfo:
    return MigrationInfo.from_dict(
        {
            "migration-id": "ab" * 16,
            "guest": "web",
            "destination": "host:49400",
            "status": "active",
            "phase": phase,
            "total-time": 61_000,
            "ram": {
                "transferred": 5 << 20,
                "remaining": 3 << 20,
                "dirty-sync-count": rounds,
                "pages-per-second": 256,
                "page-size": 4096,
            },
            "residency": {"paged-in-bytes": 7 << 20, "paged-out-bytes": 6 << 20},
            "progress": {"phase-done-bytes": done, "phase-total-bytes": total},
            **more,
        }
    )


REPORTS = st.builds(
    info,
    st.sampled_from([*PHASES, "device", "nonsense", ""]),
    st.integers(0, 200),
    st.integers(0, 100),
    st.integers(0, 5),
)


def test_texts_are_shown_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table()
    table.add_row("add it to [guests] :warning:")
    console().print(table)
    console().print("[peers] here", QUESTION)
    out = capsys.readouterr().out
    assert "[guests] :warning:" in out
    assert f"[peers] here {QUESTION}" in out


@given(st.lists(REPORTS, max_size=30))
def test_bar_never_runs_backwards_within_what_its_title_names(reports: list[MigrationInfo]) -> None:
    progress = PhaseProgress()
    best: dict[str, float] = {}
    number = 0
    for report in reports:
        progress.update(report)
        assert 0 <= progress.fraction <= 1
        assert progress.fraction >= best.get(progress.title, 0)
        best[progress.title] = progress.fraction
        assert int(progress.title.split("/")[0]) >= number
        number = int(progress.title.split("/")[0])


def test_picture_has_the_numbers() -> None:
    report = info("cold", 25, **{"expected-downtime": 42})
    progress = PhaseProgress()
    progress.update(report)
    console = Console(file=io.StringIO(), width=120)
    console.print(render(report, progress))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for wanted in ("web to host:49400", "61.0 s", "cold pass", "25%", "5.0 MiB", "3.0 MiB"):
        assert wanted in text
    for wanted in ("1.0 MiB/s", "7.0 MiB", "6.0 MiB", "42 ms"):
        assert wanted in text


def test_numbers_for_people() -> None:
    assert [size(each) for each in (0, 1023, 4096, 1 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "4 KiB",
        "1.0 MiB",
        "3.0 GiB",
    ]
    assert [duration(each) for each in (6.54, 12, 1500, 600_000)] == [
        "6.5 ms",
        "12 ms",
        "1.5 s",
        "10 min 0 s",
    ]


def test_exit_status_follows_the_error_first() -> None:
    def code(status: str, kind: str | None) -> ExitCode:
        error = {"kind": kind, "message": "x"} if kind else {}
        return of_migration(info("done", status=status, error=error))

    assert code("completed", None) is ExitCode.COMPLETED
    assert code("failed", None) is ExitCode.FAILED
    assert code("cancelled", None) is ExitCode.CANCELLED
    assert code("cancelled", "cancelled") is ExitCode.CANCELLED
    assert code("failed", "refused") is ExitCode.REFUSED
    assert code("failed", "unknown") is ExitCode.UNKNOWN
    assert code("failed", "qemu") is ExitCode.FAILED
    of_journal = MigrationInfo.from_dict({"status": "cancelled", "error-desc": "it was cancelled"})
    assert of_migration(of_journal) is ExitCode.CANCELLED


def test_doctor_is_as_good_as_its_worst_check() -> None:
    def checks(*verdicts: str) -> list[Check]:
        return [Check.from_dict({"verdict": verdict}) for verdict in verdicts]

    assert worst(checks()) == "ok"
    assert worst(checks("ok", "unknown")) == "ok"
    assert worst(checks("ok", "degraded", "unknown")) == "degraded"
    assert worst(checks("degraded", "blocked", "ok")) == "blocked"


def test_swap_traffic_is_a_rate_over_a_second_and_never_negative() -> None:
    swap = SwapRates()
    for time_ms, paged_in, expected in (
        (0, 0, 0.0),
        (500, 5 << 20, 0.0),
        (1000, 10 << 20, 10 << 20),
        (1500, 100 << 20, 10 << 20),
        (3000, 30 << 20, 10 << 20),
        (4000, 20 << 20, 0.0),
    ):
        more: dict[str, Any] = {
            "total-time": time_ms,
            "residency": {"paged-in-bytes": paged_in, "paged-out-bytes": paged_in // 2},
        }
        swap.update(info("cold", **more))
        assert swap.in_bytes_per_s == expected
        assert swap.out_bytes_per_s == expected / 2


def test_a_destination_shows_what_it_knows() -> None:
    progress = PhaseProgress()
    report = info("receiving", 0, 0, 2, role="destination", destination="")
    progress.update(report)
    out = console()
    with out.capture() as shown:
        out.print(render(report, progress))
    text = shown.get()
    assert "web to this host" in text
    assert "2/5 receiving" in text
    assert "received" in text
    assert "remaining" not in text
    assert "downtime" not in text
    progress.update(info("done", role="destination", destination=""))
    assert progress.title == "5/5 done"
