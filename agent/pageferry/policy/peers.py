"""Who may send and receive which guests: rules of the configuration, by the names in certificates.

A rule is for certificates that have its name, as a DNS name, IP address or common name; ``*`` and
``?`` in it stand for any characters and for one. Where there are no rules, whoever has a
certificate of the authority may send and receive every guest: the operator has handed those out.
Where there are rules, only what one of them allows is allowed, and who has no certificate, on a
connection without TLS, has no name to be allowed by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class PeerRule:
    """What agents with a certificate of this *name* may do. The other two are patterns of guests'
    names on this host: those that the agent may send here, and those it may receive from here.
    """

    name: str
    may_send: tuple[str, ...] = ()
    may_receive: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerRules:
    """All rules; the default allows everything."""

    rules: tuple[PeerRule, ...] = ()

    def may_send(self, names: Iterable[str], guest: str) -> bool:
        """Whether an agent whose certificate has *names* may send *guest* to this host."""
        senders = self._allowed(guest, [(rule.name, rule.may_send) for rule in self.rules])
        return senders is None or any_matches(names, senders)

    def may_send_any(self, names: Iterable[str]) -> bool:
        """Whether an agent whose certificate has *names* may send some guest to this host."""
        senders = [rule.name for rule in self.rules if rule.may_send]
        return not self.rules or any_matches(names, senders)

    def receivers(self, guest: str) -> list[str] | None:
        """Patterns of the names whose agents may receive *guest* from this host; None: all."""
        return self._allowed(guest, [(rule.name, rule.may_receive) for rule in self.rules])

    def _allowed(
        self, guest: str, patterns: Sequence[tuple[str, Sequence[str]]]
    ) -> list[str] | None:
        if not self.rules:
            return None
        return [name for name, guests in patterns if any_matches([guest], guests, fold=False)]


def any_matches(names: Iterable[str], patterns: Iterable[str], *, fold: bool = True) -> bool:
    """Whether one of *names* fits one of *patterns*; with *fold*, whatever their case."""
    wanted = [pattern.lower() if fold else pattern for pattern in patterns]
    return any(
        fnmatchcase(name.lower() if fold else name, pattern) for name in names for pattern in wanted
    )
