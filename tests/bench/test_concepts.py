"""What is read from a migration's reports for the pictures of docs/concepts.md."""

from __future__ import annotations

from pageferry.testing.bench.concepts import COLOURS, TITLES, Course, phases


def course(*reports: tuple[float, str]) -> Course:
    return Course([(at_s, {"phase": phase}) for at_s, phase in reports], [], {"total-time": 5000})


def test_phases_follow_each_other_without_a_gap() -> None:
    told = course((0.0, "look"), (0.4, "cold"), (2.0, "cold"), (3.0, "resident"), (4.0, "rounds"))
    assert phases(told) == [
        ("look", 0.0, 0.4),
        ("cold", 0.4, 3.0),
        ("resident", 3.0, 4.0),
        ("rounds", 4.0, 5.0),
    ]


def test_device_state_and_commit_are_the_switchover() -> None:
    told = course((1.0, "rounds"), (4.0, "switchover"), (4.2, "device"), (4.5, "commit"))
    assert phases(told) == [("rounds", 1.0, 4.0), ("switchover", 4.0, 5.0)]
    assert phases(course()) == []


def test_every_band_has_a_name() -> None:
    assert set(TITLES) <= set(COLOURS)
