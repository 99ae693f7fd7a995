"""Errors tell what to do, also where nobody thought of it when they were raised."""

from __future__ import annotations

import pytest

from pageferry.model import errors
from pageferry.model.errors import MigrationCancelledError, PageferryError, RefusedError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, PageferryError)
    and not issubclass(kind, RefusedError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_without_advice_has_its_kinds_usual_one(kind: type[PageferryError]) -> None:
    report = kind("it broke").report()
    assert (report["kind"], report["message"]) == (kind.kind, "it broke")
    # Who cancels knows why.
    assert bool(report["advice"]) is (kind is not MigrationCancelledError)
    assert kind("it broke", advice="mend it").report()["advice"] == "mend it"


def test_a_refusal_always_comes_with_advice() -> None:
    with pytest.raises(TypeError, match="advice"):
        RefusedError("no")  # type: ignore[call-arg]
    assert RefusedError("no", advice="ask").guest_state == "untouched"
