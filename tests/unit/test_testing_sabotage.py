"""Sabotage: off unless asked for twice, and never by a slip."""

from __future__ import annotations

import pytest

from pageferry.daemon.main import main
from pageferry.testing.sabotage import (
    BACK_TO_BACK_ROUNDS,
    DRAIN_EVERY_ROUND,
    ENABLE_VARIABLE,
    ENABLED,
    SABOTAGE_VARIABLE,
    SKIP_DRAIN,
    SabotageError,
    requested_sabotage,
    sabotage_number,
    sabotaged,
)


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which sabotage may be asked for."""
    monkeypatch.setenv(ENABLE_VARIABLE, ENABLED)
    return monkeypatch


def test_nothing_happens_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SABOTAGE_VARIABLE, raising=False)
    assert requested_sabotage() == {}
    assert not sabotaged(SKIP_DRAIN)
    assert sabotage_number(BACK_TO_BACK_ROUNDS) == 0


def test_being_allowed_is_not_being_asked(enabled: pytest.MonkeyPatch) -> None:
    enabled.setenv(SABOTAGE_VARIABLE, "")
    assert requested_sabotage() == {}


def test_asked_for_with_and_without_a_number(enabled: pytest.MonkeyPatch) -> None:
    enabled.setenv(SABOTAGE_VARIABLE, f"{SKIP_DRAIN},{BACK_TO_BACK_ROUNDS}=12")
    assert sabotaged(SKIP_DRAIN)
    assert sabotage_number(BACK_TO_BACK_ROUNDS) == 12
    assert not sabotaged(DRAIN_EVERY_ROUND)


@pytest.mark.parametrize("consent", [None, "", "1", "yes"])
def test_refused_without_consent(monkeypatch: pytest.MonkeyPatch, consent: str | None) -> None:
    monkeypatch.setenv(SABOTAGE_VARIABLE, SKIP_DRAIN)
    if consent is None:
        monkeypatch.delenv(ENABLE_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(ENABLE_VARIABLE, consent)
    with pytest.raises(SabotageError, match="unset it"):
        requested_sabotage()


def test_what_does_not_exist_is_refused(enabled: pytest.MonkeyPatch) -> None:
    enabled.setenv(SABOTAGE_VARIABLE, f"{SKIP_DRAIN},skip-everything")
    with pytest.raises(SabotageError, match="names skip-everything; there are"):
        requested_sabotage()


@pytest.mark.parametrize("value", ["", "x", "-1"])
def test_a_number_that_is_none_is_refused(enabled: pytest.MonkeyPatch, value: str) -> None:
    enabled.setenv(SABOTAGE_VARIABLE, f"{BACK_TO_BACK_ROUNDS}={value}")
    with pytest.raises(SabotageError, match="wants a number"):
        requested_sabotage()


def test_pageferryd_does_not_start_with_sabotage_by_a_slip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SABOTAGE_VARIABLE, SKIP_DRAIN)
    monkeypatch.delenv(ENABLE_VARIABLE, raising=False)
    assert main(["--check"]) == 1
    assert SABOTAGE_VARIABLE in capsys.readouterr().err
