"""The bench itself, on a guest that is small enough for the test-suite."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from pageferry.testing.bench.main import Bench, markdown_of
from pageferry.testing.bench.pictures import NoMatplotlibError, draw_all
from pageferry.testing.bench.results import Results, from_json
from pageferry.testing.bench.scale.costs import FULL_STEP_BYTES, costs_of
from pageferry.testing.bench.scenarios import MULTIFD, PAGEFERRY, Limit, Scenario, scenarios
from pageferry.testing.lab.guests import GuestPlan, freestanding_guest
from pageferry.testing.lab.packages import QemuBinary

pytestmark = [pytest.mark.root, pytest.mark.qemu]

MIB = 1024 * 1024


def tiny(binary: QemuBinary, name: str, **changes: object) -> Scenario:
    plan = GuestPlan(binary, ram_mib=64, cold_mib=24, hot_mib=4, zero_mib=0, repeat=4)
    base = Scenario(name, name, plan, timeout_s=30.0, before_s=0.3, after_s=0.3)
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.swap
def test_a_quick_bench(host_swap: object, newest_qemu: QemuBinary, tmp_path: Path) -> None:
    chosen = [
        tiny(newest_qemu, "loopback", contenders=(PAGEFERRY,)),
        tiny(
            newest_qemu,
            "link",
            contenders=(MULTIFD,),
            limit=Limit.LINK,
            link_bits_per_s=400_000_000,
        ),
    ]
    results = Results(
        {"date": "today", "processors": 1, "processor": "one", "memory_gib": 1}
        | {"kernel": "k", "qemu": "q", "accelerator": "tcg", "load_at_start": 0},
        {"quick": True, "runs": 1, "revision": "", "connections": 2},
        {scenario.name: scenario.title for scenario in chosen},
    )
    file = tmp_path / "bench.json"
    assert Bench(chosen, results, file, lock=tmp_path / "lock").run() == []
    assert from_json(file.read_text()) == results
    assert results.finished
    assert not results.wrong_memory
    assert [(run.scenario, run.contender) for run in results.runs] == [
        ("loopback", "limit"),
        ("loopback", PAGEFERRY),
        ("link", MULTIFD),
    ]
    for run in results.runs:
        assert run.completed, run.error
    over_loopback, over_link = results.runs[1].figures, results.runs[2].figures
    for figures in (over_loopback, over_link):
        # Whatever moves the guest, its 28 MiB must have gone over the wire, and not twice over.
        assert 28 <= (figures["wire_mib"] or 0) <= 80
        assert (figures["data_mib"] or 0) >= 28
        assert (figures["sampler_share"] or 1) < 0.2
    # 28 MiB take 0.59 s at this rate: the shaper shapes.
    assert (over_link["total_s"] or 0) > 0.5
    assert "| loopback | pageferry | 1 |" in markdown_of(results)
    # Continuing finished results makes no run twice.
    assert Bench(chosen, results, file, lock=None).run() == []
    assert len(json.loads(file.read_text())["runs"]) == 3
    try:
        drawn = draw_all(results, tmp_path / "img")
    except NoMatplotlibError:
        return
    assert [path.name for path in drawn] == ["throughput-loopback.svg"]
    assert "<svg" in drawn[0].read_text()


def test_repeated_words_compress_and_are_verified(newest_qemu: QemuBinary) -> None:
    plan = GuestPlan(newest_qemu, ram_mib=64, cold_mib=8, hot_mib=4, zero_mib=0, repeat=4)
    with freestanding_guest(plan) as guest:
        cold = guest.wait_ready().cold
        path = guest.source.ram_path
        assert path is not None
        with path.open("r+b") as ram:
            ram.seek(cold.address)
            data = ram.read(cold.length_bytes)
            assert len(zlib.compress(data, 1)) < 0.35 * len(data)
            assert guest.verify().bad == 0
            # The last word of the last repetition of a page.
            ram.seek(cold.address + 4096 * 5 - 4)
            ram.write(b"\0\0\0\0")
            ram.flush()
        found = guest.verify()
    assert (found.cold_bad, found.bad) == (1, 1)
    assert "page=4 " in found.details[0]
    assert "word=1023 " in found.details[0]


def test_costs_are_measured_on_a_stand_in() -> None:
    sparse, full = costs_of(1), costs_of(1, FULL_STEP_BYTES)
    assert set(sparse) == set(full) >= {"arm_ms", "scan_clean_ms", "holes_ms", "cachestat_ms"}
    assert all(value >= 0 for value in sparse.values())
    # Tracked memory has page tables all over, in use or not: 2 MiB for each GiB.
    assert 2 <= sparse["page_tables_mib"] <= 4


def test_scenarios_have_names_of_their_own(newest_qemu: QemuBinary) -> None:
    for quick in (False, True):
        known = scenarios(newest_qemu, quick=quick)
        assert len({scenario.name for scenario in known}) == len(known)
        for scenario in known:
            plan = scenario.plan
            assert plan.cold_mib + plan.hot_mib + plan.zero_mib + 4 < min(plan.ram_mib, 2048)
            assert scenario.contenders[0] == PAGEFERRY
            assert MULTIFD in scenario.contenders
