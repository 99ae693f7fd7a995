"""The probes on this host, and what they find when something is missing."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from pageferry.kernel import probes, residency
from pageferry.kernel.probe_result import Degree, ProbeResult
from pageferry.testing.lab.swap import SwapArea

pytestmark = pytest.mark.root


def test_everything_a_migration_needs_is_here(swap: SwapArea) -> None:
    results = {result.name: result for result in probes.probe()}
    needed = ["userfaultfd-wp-async", "pagemap-scan", "userfaultfd-injection", "page-out"]
    assert [results[name].degree for name in needed] == [Degree.SUPPORTED] * len(needed)
    assert all(result.reason for result in results.values())
    way = results["residency"]
    assert way.degree is Degree.SUPPORTED
    if results["pagemap"].supported:
        assert "swap slots" in way.reason
    else:
        assert "kernel-patches/ would give" in way.reason


@pytest.mark.parametrize(
    ("error", "degree"), [(errno.ENOSYS, Degree.ABSENT), (errno.EPERM, Degree.DENIED)]
)
def test_missing_cachestat_is_told_from_a_forbidden_one(
    error: int, degree: Degree, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = residency.lib  # type: ignore[attr-defined]
    fake = SimpleNamespace(pf_cachestat_swapped=lambda *_arguments: error)
    monkeypatch.setattr(residency, "lib", _Overlay(fake, native))
    found = {result.name: result for result in residency.probe_readers()}
    assert found["cachestat"].degree is degree
    assert found["mincore"].supported
    assert found["pagemap"].degree is not Degree.DENIED


def test_the_way_that_is_used_is_told_with_what_the_patches_would_give() -> None:
    def way(*supported: str) -> ProbeResult:
        return residency.describe_way(
            [
                ProbeResult(name, Degree.SUPPORTED if name in supported else Degree.ABSENT, "why")
                for name in ("pagemap", "cachestat", "mincore")
            ]
        )

    assert way("pagemap", "cachestat", "mincore").reason == "told by pagemap: why"
    assert way("cachestat", "mincore").reason.startswith("told by cachestat: exact")
    assert way("mincore").reason.startswith("told by mincore: approximate")
    assert all("kernel-patches/" in way(name).reason for name in ("cachestat", "mincore"))
    assert way().degree is Degree.ABSENT


class _Overlay:
    def __init__(self, over: object, under: object) -> None:
        self._over = over
        self._under = under

    def __getattr__(self, name: str) -> object:
        return getattr(self._over, name, None) or getattr(self._under, name)


def test_host_without_swap_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (probes, residency):
        monkeypatch.setattr(module, "swap_is_on", lambda: False)
    found = {result.name: result for result in probes.probe()}
    assert found["page-out"].degree is Degree.ABSENT
    assert "no swap" in found["page-out"].reason
    assert residency.choose_reader().name in ("cachestat", "mincore")
