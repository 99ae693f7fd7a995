"""Faults on purpose: off unless asked for twice, and never by a slip."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from pageferry.daemon.main import main
from pageferry.model.phase import DestinationPhase, SourcePhase
from pageferry.testing.faults import (
    BACK_TO_BACK_ROUNDS,
    BEFORE_WRITE,
    DRAIN_EVERY_ROUND,
    ENABLE_VARIABLE,
    ENABLED,
    FAULTS_VARIABLE,
    HALF_WRITTEN,
    POINTS,
    SKIP_DRAIN,
    FaultsError,
    fault_point,
    go_path,
    in_phase,
    is_broken,
    journalling,
    number_of,
    reached_path,
    requested_faults,
)


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which faults may be asked for."""
    monkeypatch.setenv(ENABLE_VARIABLE, ENABLED)
    return monkeypatch


def test_nothing_happens_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAULTS_VARIABLE, raising=False)
    assert requested_faults() == {}
    assert not is_broken(SKIP_DRAIN)
    assert number_of(BACK_TO_BACK_ROUNDS) == 0


def test_being_allowed_is_not_being_asked(enabled: pytest.MonkeyPatch) -> None:
    enabled.setenv(FAULTS_VARIABLE, "")
    assert requested_faults() == {}


def test_asked_for_with_and_without_a_number(enabled: pytest.MonkeyPatch) -> None:
    enabled.setenv(FAULTS_VARIABLE, f"{SKIP_DRAIN},{BACK_TO_BACK_ROUNDS}=12")
    assert is_broken(SKIP_DRAIN)
    assert number_of(BACK_TO_BACK_ROUNDS) == 12
    assert not is_broken(DRAIN_EVERY_ROUND)


@pytest.mark.parametrize("consent", [None, "", "1", "yes"])
def test_refused_without_consent(monkeypatch: pytest.MonkeyPatch, consent: str | None) -> None:
    monkeypatch.setenv(FAULTS_VARIABLE, SKIP_DRAIN)
    if consent is None:
        monkeypatch.delenv(ENABLE_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(ENABLE_VARIABLE, consent)
    with pytest.raises(FaultsError, match="unset it"):
        requested_faults()


def test_what_does_not_exist_is_refused(enabled: pytest.MonkeyPatch) -> None:
    enabled.setenv(FAULTS_VARIABLE, f"{SKIP_DRAIN},skip-everything")
    with pytest.raises(FaultsError, match="names skip-everything; there are"):
        requested_faults()


@pytest.mark.parametrize("value", ["", "x", "-1"])
def test_a_number_that_is_none_is_refused(enabled: pytest.MonkeyPatch, value: str) -> None:
    enabled.setenv(FAULTS_VARIABLE, f"{BACK_TO_BACK_ROUNDS}={value}")
    with pytest.raises(FaultsError, match="wants a number"):
        requested_faults()


def test_pageferryd_does_not_start_with_faults_by_a_slip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FAULTS_VARIABLE, SKIP_DRAIN)
    monkeypatch.delenv(ENABLE_VARIABLE, raising=False)
    assert main(["--check"]) == 1
    assert FAULTS_VARIABLE in capsys.readouterr().err


@pytest.mark.parametrize("action", ["kill", "stop", "hang", "EIO", "wait:/run/x"])
def test_a_fault_point_with_an_action(enabled: pytest.MonkeyPatch, action: str) -> None:
    point = in_phase(SourcePhase.COLD)
    enabled.setenv(FAULTS_VARIABLE, f"{point}={action},{SKIP_DRAIN}")
    assert requested_faults() == {point: action, SKIP_DRAIN: ""}


@pytest.mark.parametrize("action", ["", "explode", "wait:", "wait:here", "errorcode"])
def test_an_action_that_is_none_is_refused(enabled: pytest.MonkeyPatch, action: str) -> None:
    enabled.setenv(FAULTS_VARIABLE, f"{in_phase(SourcePhase.COLD)}={action}")
    with pytest.raises(FaultsError, match="wants an action"):
        requested_faults()


def test_a_switch_with_a_value_is_refused(enabled: pytest.MonkeyPatch) -> None:
    enabled.setenv(FAULTS_VARIABLE, f"{SKIP_DRAIN}=yes")
    with pytest.raises(FaultsError, match="stands alone"):
        requested_faults()


def test_a_point_without_faults_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAULTS_VARIABLE, raising=False)
    for point in POINTS:
        fault_point(point)


def test_a_point_acts_only_with_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    point = in_phase(DestinationPhase.LOADED)
    monkeypatch.delenv(ENABLE_VARIABLE, raising=False)
    monkeypatch.setenv(FAULTS_VARIABLE, f"{point}=kill")
    with pytest.raises(FaultsError, match="unset it"):
        fault_point(point)


def test_a_point_raises_what_was_asked_for_there_only(enabled: pytest.MonkeyPatch) -> None:
    point = journalling(BEFORE_WRITE, SourcePhase.COMMIT)
    enabled.setenv(FAULTS_VARIABLE, f"{point}=ENOSPC")
    fault_point(journalling(HALF_WRITTEN, SourcePhase.COMMIT))
    with pytest.raises(OSError, match="No space left") as caught:
        fault_point(point)
    assert caught.value.errno == errno.ENOSPC


def test_a_point_that_is_not_declared_is_an_error_without_faults_too() -> None:
    with pytest.raises(LookupError, match="no fault point"):
        fault_point("in-source-limbo")


def test_waiting_tells_that_it_was_reached(enabled: pytest.MonkeyPatch, tmp_path: Path) -> None:
    point = in_phase(SourcePhase.ROUNDS)
    enabled.setenv(FAULTS_VARIABLE, f"{point}=wait:{tmp_path}")
    thread = threading.Thread(target=fault_point, args=[point])
    thread.start()
    reached = reached_path(tmp_path, point)
    deadline = time.monotonic() + 30
    while not reached.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert reached.read_text() == str(os.getpid())
    assert thread.is_alive()
    go_path(tmp_path, point).touch()
    thread.join(30)
    assert not thread.is_alive()
