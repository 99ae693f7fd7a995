"""Declared types: what they accept, and how they describe themselves."""

from __future__ import annotations

from typing import Any

import pytest

from pageferry.control import schema
from pageferry.control.declarations import EVENTS
from pageferry.control.errors import CommandError
from pageferry.control.registry import Declaration, Registry
from pageferry.control.schema import (
    ANY,
    BOOL,
    INT,
    NUMBER,
    SIZE,
    STR,
    Array,
    Enum,
    EventType,
    Member,
    Struct,
)
from pageferry.control.types import PARAMETERS
from pageferry.model.parameters import KEYS, RESIDENCY_WAYS

COLOUR = Enum("Colour", ("red", "blue"))
INNER = Struct("Inner", (Member("size", SIZE), Member("colour", COLOUR, optional=True)))
OUTER = Struct("Outer", (Member("inner", INNER), Member("many", Array(INNER), optional=True)))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (STR, ""),
        (INT, -(1 << 63)),
        (INT, (1 << 63) - 1),
        (SIZE, 0),
        (NUMBER, 3),
        (NUMBER, 3.5),
        (BOOL, False),
        (ANY, [{"x": None}]),
        (COLOUR, "red"),
        (Array(STR), []),
        (Array(INT), [1, 2]),
        (OUTER, {"inner": {"size": 1}}),
        (OUTER, {"inner": {"size": 1, "colour": "blue"}, "many": [{"size": 2}]}),
    ],
)
def test_fitting_values_are_taken(kind: schema.Type, value: object) -> None:
    schema.check(kind, value, "x")


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (STR, 1, "'x', expected: string"),
        (STR, None, "'x', expected: string"),
        (INT, 1.0, "'x', expected: integer"),
        (INT, True, "'x', expected: integer"),
        (INT, 1 << 63, "'x', expected: integer"),
        (SIZE, -1, "'x', expected: integer"),
        (NUMBER, "1", "'x', expected: number"),
        (NUMBER, False, "'x', expected: number"),
        (BOOL, 0, "'x', expected: boolean"),
        (COLOUR, "green", "'x' does not accept value 'green'"),
        (COLOUR, 3, "'x', expected: string"),
        (Array(STR), "ab", "'x', expected: array"),
        (Array(STR), ["a", 1], r"'x\[1\]', expected: string"),
        (OUTER, [], "'x', expected: object"),
        (OUTER, {}, r"'x\.inner' is missing"),
        (OUTER, {"inner": {"size": 1, "sise": 2}}, r"'x\.inner\.sise' is unexpected"),
        (OUTER, {"inner": {"size": 1}, "many": [{}]}, r"'x\.many\[0\]\.size' is missing"),
    ],
)
def test_others_are_named(kind: schema.Type, value: object, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        schema.check(kind, value, "x")


def registry() -> Registry:
    async def nothing(_arguments: dict[str, Any], _peer: object) -> None:
        return None

    made = Registry(events=(EventType("HAPPENED", (Member("what", COLOUR),)), EventType("END", ())))
    made.add(Declaration("act", "", (Member("on", OUTER),), features=("unstable",)), nothing)
    made.add(Declaration("query-act", "", returns=Array(INNER)), nothing)
    return made


def test_introspection_has_the_form_of_qapi() -> None:
    entries = registry().introspection()
    by_name = {entry["name"]: entry for entry in entries}
    assert len(by_name) == len(entries)
    assert by_name["act"] == {
        "name": "act",
        "meta-type": "command",
        "arg-type": "q_obj_act-arg",
        "ret-type": "q_empty",
        "features": ["unstable"],
    }
    assert by_name["query-act"]["ret-type"] == "[Inner]"
    assert by_name["[Inner]"] == {"name": "[Inner]", "meta-type": "array", "element-type": "Inner"}
    assert by_name["Inner"] == {
        "name": "Inner",
        "meta-type": "object",
        "members": [
            {"name": "size", "type": "int"},
            {"name": "colour", "type": "Colour", "default": None},
        ],
    }
    assert by_name["Colour"]["members"] == [{"name": "red"}, {"name": "blue"}]
    assert by_name["int"] == {"name": "int", "meta-type": "builtin", "json-type": "int"}
    assert by_name["HAPPENED"]["meta-type"] == "event"
    assert by_name["END"]["arg-type"] == "q_empty"
    assert by_name["q_empty"]["members"] == []


def test_introspection_names_no_type_that_it_does_not_describe() -> None:
    entries = registry().introspection()
    names = {entry["name"] for entry in entries}
    for entry in entries:
        for key in ("arg-type", "ret-type", "element-type"):
            assert entry.get(key, "int") in names
        if entry["meta-type"] == "object":
            assert {member["type"] for member in entry["members"]} <= names


def test_two_commands_of_one_name_are_a_bug() -> None:
    made = registry()

    async def nothing(_arguments: dict[str, Any], _peer: object) -> None:
        return None

    with pytest.raises(ValueError, match="act"):
        made.add(Declaration("act", ""), nothing)


def test_every_migration_parameter_is_declared() -> None:
    assert [member.name for member in PARAMETERS] == list(KEYS.values())
    assert all(member.optional and member.doc for member in PARAMETERS)
    way = next(member for member in PARAMETERS if member.name == "residency-way")
    assert isinstance(way.type, Enum)
    assert way.type.values == RESIDENCY_WAYS


def test_every_event_tells_which_migration_it_is_about() -> None:
    for event in EVENTS:
        assert {"migration-id", "guest", "role"} <= {member.name for member in event.members}
