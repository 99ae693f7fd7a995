"""Who may send and receive which guests."""

from __future__ import annotations

import pytest

from pageferry.policy.peers import PeerRule, PeerRules, any_matches

RULES = PeerRules(
    (
        PeerRule("host-a.example", may_send=("web*", "db"), may_receive=("*",)),
        PeerRule("*.backup.example", may_receive=("db?",)),
        PeerRule("host-a.example", may_send=("extra",)),
        PeerRule("192.0.2.7"),
    )
)


def test_without_rules_everything_is_allowed() -> None:
    assert PeerRules().may_send(["anyone"], "web")
    assert PeerRules().may_send([], "web")
    assert PeerRules().receivers("web") is None


@pytest.mark.parametrize(
    ("names", "guest", "allowed"),
    [
        (["host-a.example"], "web1", True),
        (["HOST-A.Example"], "web1", True),
        (["other", "host-a.example"], "db", True),
        (["host-a.example"], "extra", True),
        (["host-a.example"], "db2", False),
        (["host-a.example"], "WEB1", False),
        (["x.host-a.example"], "web1", False),
        (["one.backup.example"], "db1", False),
        (["192.0.2.7"], "web1", False),
        ([], "web1", False),
    ],
)
def test_only_what_a_rule_allows_may_be_sent(names: list[str], guest: str, allowed: bool) -> None:
    assert RULES.may_send(names, guest) == allowed


def test_only_what_a_rule_allows_may_be_received() -> None:
    assert RULES.receivers("db1") == ["host-a.example", "*.backup.example"]
    assert RULES.receivers("web1") == ["host-a.example"]
    assert PeerRules((PeerRule("host-a"),)).receivers("web1") == []
    assert any_matches(["One.Backup.example"], ["*.backup.example"])
    assert not any_matches(["backup.example"], ["*.backup.example"])
