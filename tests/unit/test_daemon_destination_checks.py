"""What the doctor makes of what another host's agent says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.daemon.config import Config
from pageferry.daemon.destination_checks import NOT_ALLOWED, check_destination, guest_checks
from pageferry.model.residency import ResidencyBytes
from pageferry.model.verdict import Check, Verdict
from pageferry.net.address import Address
from pageferry.policy.peers import PeerRule, PeerRules
from pageferry.wire.messages import QueryReply
from tests.support.daemon_bench import free_port
from tests.support.pki import Pki
from tests.unit.test_daemon_tls import daemon_with_tls

MIB = 1 << 20
RAM = ResidencyBytes(resident_bytes=100 * MIB, swapped_bytes=50 * MIB)
NEEDS = [Check("guest", "ram", Verdict.OK, "150 MiB", guest="web", ram=RAM)]


def reply(memory: int, swap: int, tmpfs: int, verdict: str = "ok") -> QueryReply:
    return QueryReply("no-journal", "why", verdict, "do it", memory * MIB, swap * MIB, tmpfs * MIB)


@pytest.mark.parametrize(
    ("free", "verdicts"),
    [
        ((100, 50, 150), ["ok", "ok", "ok"]),
        ((99, 60, 150), ["degraded", "ok", "ok"]),
        ((99, 50, 150), ["blocked", "ok", "ok"]),  # not even with all of the swap
        ((150, 0, 150), ["ok", "degraded", "ok"]),
        ((150, 50, 149), ["ok", "ok", "degraded"]),
    ],
)
def test_what_is_free_there_is_held_against_the_guest(
    free: tuple[int, int, int], verdicts: list[str]
) -> None:
    told, *room = guest_checks("web", RAM, reply(*free))
    assert told.verdict is Verdict.OK
    assert [check.verdict for check in room] == verdicts
    for check in room:
        assert (check.verdict is Verdict.OK) == (check.fix == "")
        assert check.guest == "web"


def test_the_word_of_the_agent_there_is_passed_on() -> None:
    told = guest_checks("web", RAM, reply(999, 999, 999, "blocked"))[0]
    assert (told.verdict, told.fix) == (Verdict.BLOCKED, "do it")
    assert "the agent there says: why" in told.found


def test_an_agent_that_does_not_know_the_question_is_no_fault() -> None:
    (told,) = guest_checks("web", RAM, QueryReply("no-journal", ""))
    assert told.verdict is Verdict.UNKNOWN
    (told,) = guest_checks("web", RAM, QueryReply(NOT_ALLOWED, "[peers] there"))
    assert told.verdict is Verdict.BLOCKED


async def test_nobody_there() -> None:
    nowhere = Address("127.0.0.1", free_port())
    (agent,) = await check_destination(Config(), nowhere, NEEDS)
    assert agent.verdict is Verdict.BLOCKED
    assert agent.found == f"the agent at {nowhere} cannot be reached: Connection refused"


async def test_it_is_asked_as_a_migration_would(tmp_path: Path) -> None:
    """Certificates are shown and looked at, and [peers] of either host counts."""
    pki = Pki.make(tmp_path / "pki")
    for name in ("host-a.example", "host-b.example"):
        pki.host(name)
    rules = PeerRules((PeerRule("host-a.example", may_send=("web",)),))
    async with daemon_with_tls(tmp_path, pki, peers=rules) as bench:
        bench.guest("web")
        here = bench.config_of(pki.folder / "host-a.example")
        agent, guest, *_room = await check_destination(here, bench.config.listen, NEEDS)
        assert (agent.verdict, guest.verdict) == (Verdict.OK, Verdict.OK)
        assert "encrypted" in agent.found
        (_, guest) = await check_destination(here, bench.config.listen, NEEDS, "db")
        assert (guest.name, guest.verdict) == ("peers", Verdict.BLOCKED)

        narrow = PeerRules((PeerRule("host-b.example", may_receive=("db",)),))
        here = bench.config_of(pki.folder / "host-a.example", peers=narrow)
        (agent,) = await check_destination(here, bench.config.listen, NEEDS)
        assert agent.verdict is Verdict.BLOCKED
        assert "may-receive" in agent.fix

        (tmp_path / "none").mkdir()
        (agent,) = await check_destination(
            bench.config_of(tmp_path / "none"), bench.config.listen, NEEDS
        )
        assert agent.verdict is Verdict.BLOCKED
        assert "pageferry certs" in agent.fix
