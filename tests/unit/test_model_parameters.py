"""Parameters of one migration."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.model.errors import RefusedError
from pageferry.model.parameters import (
    KEYS,
    NO_CONVERGENCE_CHOICES,
    RESIDENCY_WAYS,
    MigrationParameters,
    check_changeable,
)

VALID = st.fixed_dictionaries(
    {},
    optional={
        "downtime-limit": st.integers(1, 2_000_000),
        "page-in-window": st.integers(64 * 1024, 2**30),
        "channels": st.integers(1, 64),
        "max-rounds": st.integers(1, 10_000),
        "residency-way": st.sampled_from(RESIDENCY_WAYS),
        "verify": st.booleans(),
        "timeout": st.floats(0.001, 1e6) | st.integers(1, 10**6),
        "max-bandwidth": st.just(0) | st.integers(65536, 2**50),
        "max-swap-bandwidth": st.just(0) | st.integers(65536, 2**50),
        "swap-pacing": st.booleans(),
        "auto-converge": st.booleans(),
        "cpu-throttle-initial": st.integers(1, 99),
        "cpu-throttle-increment": st.integers(1, 99),
        "max-cpu-throttle": st.integers(1, 99),
        "on-no-convergence": st.sampled_from(NO_CONVERGENCE_CHOICES),
    },
)


def test_defaults() -> None:
    assert MigrationParameters().to_dict() == {
        "downtime-limit": 300,
        "channels": 2,
        "max-rounds": 30,
        "verify": False,
        "compression": "off",
        "compression-level": 1,
        "max-bandwidth": 0,
        "max-swap-bandwidth": 0,
        "swap-pacing": True,
        "auto-converge": False,
        "cpu-throttle-initial": 20,
        "cpu-throttle-increment": 10,
        "max-cpu-throttle": 99,
        "on-no-convergence": "give-up",
    }


@given(VALID)
@settings(deadline=None)
def test_dictionary_round_trip(values: dict[str, Any]) -> None:
    parameters = MigrationParameters.from_dict(values)
    assert values.items() <= parameters.to_dict().items()
    assert MigrationParameters.from_dict(parameters.to_dict()) == parameters


def test_none_sets_a_parameter_back() -> None:
    changed = MigrationParameters(downtime_limit_ms=5, window_bytes=2**20)
    again = changed.updated({"downtime-limit": None, "page-in-window": None, "channels": 4})
    assert again == MigrationParameters(channels=4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("downtime-limit", 0),
        ("downtime-limit", 2_000_001),
        ("downtime-limit", 1.5),
        ("downtime-limit", True),
        ("downtime-limit", "300"),
        ("page-in-window", False),
        ("page-in-window", 2**30 + 1),
        ("channels", 0),
        ("channels", 65),
        ("max-rounds", 0),
        ("residency-way", "guess"),
        ("residency-way", ["pagemap"]),
        ("verify", 1),
        ("timeout", -1.0),
        ("timeout", float("inf")),
        ("timeout", float("nan")),
        ("timeout", True),
        ("timeout", "1"),
        ("max-bandwidth", 1000),
        ("max-bandwidth", -1),
        ("max-bandwidth", True),
        ("max-bandwidth", 1e9),
        ("max-swap-bandwidth", 2**51),
        ("swap-pacing", 1),
        ("auto-converge", "on"),
        ("cpu-throttle-initial", 0),
        ("cpu-throttle-increment", 100),
        ("max-cpu-throttle", 100),
        ("max-cpu-throttle", 50.0),
        ("on-no-convergence", "hope"),
        ("on-no-convergence", ["give-up"]),
    ],
)
def test_bad_value_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(RefusedError) as caught:
        MigrationParameters.from_dict({key: value})
    assert key in caught.value.message
    assert key in caught.value.advice


@pytest.mark.parametrize("zero", [0, 0.0])
def test_zero_sets_back_what_is_otherwise_left_out(zero: float) -> None:
    given = MigrationParameters(window_bytes=1 << 20, timeout_s=5.0)
    given = given.updated({"timeout": zero, "page-in-window": 0})
    assert (given.timeout_s, given.window_bytes) == (None, None)
    assert given == MigrationParameters()


def test_unknown_key_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RefusedError) as caught:
        MigrationParameters.from_dict({"downtime_limit": 1})
    assert "downtime_limit" in caught.value.message
    assert all(key in caught.value.advice for key in KEYS.values())


def test_every_attribute_has_a_key() -> None:
    assert set(KEYS) == set(MigrationParameters.__slots__)


def test_only_what_is_settled_with_the_other_agent_is_fixed_while_a_migration_runs() -> None:
    for key in KEYS.values():
        if key in ("channels", "residency-way"):
            with pytest.raises(RefusedError, match=key):
                check_changeable({key: None})
        else:
            check_changeable({key: None})
