"""The probes on this host, and what they find when something is missing."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from pageferry.kernel import probes, residency
from pageferry.kernel.probe_result import Degree
from pageferry.testing.lab.swap import SwapArea

pytestmark = pytest.mark.root


def test_everything_a_migration_needs_is_here(swap: SwapArea) -> None:
    results = {result.name: result for result in probes.probe()}
    needed = ["userfaultfd-wp-async", "pagemap-scan", "userfaultfd-injection", "page-out"]
    assert [results[name].degree for name in needed] == [Degree.SUPPORTED] * len(needed)
    assert all(result.reason for result in results.values())


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
