"""The read-only group, with processes of other users at the socket."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from pageferry.control.errors import CommandError
from pageferry.control.registry import Peer, Registry
from pageferry.daemon.access import access_for
from pageferry.daemon.commands import Commands
from pageferry.daemon.config import ConfigError, parse_config
from tests.support.daemon_bench import running_daemon

GROUP = 64999
OTHER = 64998

CLIENT = """
import json, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
file = sock.makefile("rw")
file.readline()
for name in ("qmp_capabilities", *sys.argv[2:]):
    file.write(json.dumps({"execute": name}))
    file.flush()
    print(file.readline(), end="")
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach."""
    with tempfile.TemporaryDirectory(prefix="pageferry-access-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


async def asked_as(uid: int, gid: int, groups: list[int], *arguments: str) -> list[dict[str, Any]]:
    """The answers that a client with these credentials gets; none when it cannot connect."""
    done = await trio.to_thread.run_sync(
        lambda: subprocess.run(
            ["/usr/bin/env", "python3", "-c", CLIENT, *arguments],
            capture_output=True,
            text=True,
            user=uid,
            group=gid,
            extra_groups=groups,
            timeout=30,
            check=False,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
        )
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.root
async def test_group_may_query_and_nothing_else(open_folder: Path) -> None:
    async with running_daemon(open_folder, read_only_gid=GROUP, control_socket_mode=0o660) as bench:
        path = bench.config.control_socket
        assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (GROUP, 0o660)
        commands = (str(path), "query-status", "migrate-recover", "query-guests")
        for gid, groups in ((GROUP, []), (OTHER, [GROUP])):
            _, status, denied, guests = await asked_as(65534, gid, groups, *commands)
            assert status["return"]["access"] == "read-only"
            assert denied["error"]["report"]["kind"] == "denied"
            assert guests == {"return": []}
        assert await asked_as(65534, OTHER, [], *commands) == []
        _, status, allowed, _ = await asked_as(0, GROUP, [], *commands)
        assert status["return"]["access"] == "full"
        assert allowed == {"return": []}


async def test_reader_cannot_make_the_daemon_connect_anywhere(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        registry = Registry()
        hooks = bench.hooks.hooks()
        Commands(bench.config, bench.supervisor, hooks, lambda peer: peer.uid == 0).register(
            registry
        )
        qmp = bench.guest("web")
        root, reader = Peer(1, 0, 0), Peer(2, 1000, GROUP)
        for name, arguments in (
            ("query-residency", {"guest": str(qmp)}),
            ("query-migrate", {"guest": str(qmp)}),
            ("query-doctor", {"guest": str(qmp)}),
            ("query-doctor", {"uri": "127.0.0.1:1"}),
        ):
            with pytest.raises(CommandError) as caught:
                await registry.call(name, arguments, reader)
            assert caught.value.report["kind"] == "denied"
            await registry.call(name, arguments, root)
        assert await registry.call("query-residency", {"guest": "web"}, reader)


def test_who_may_change() -> None:
    may_change = access_for(GROUP)
    assert may_change(Peer(1, 0, GROUP))
    assert may_change(Peer(1, os.geteuid(), GROUP))
    assert may_change(Peer(1, 12345, OTHER, frozenset({OTHER})))
    assert not may_change(Peer(1, 12345, GROUP))
    assert not may_change(Peer(1, 12345, OTHER, frozenset({GROUP})))
    assert not may_change(Peer(1, 12345, OTHER, None))
    assert access_for(None)(Peer(1, 12345, GROUP))


def test_group_is_named_in_the_configuration() -> None:
    config = parse_config('[daemon]\nread-only-group = "daemon"\n', "x.toml")
    assert config.read_only_gid is not None
    assert config.control_socket_mode == 0o660
    both = '[daemon]\nread-only-group = "daemon"\ncontrol-socket-mode = "0666"\n'
    assert parse_config(both, "x.toml").control_socket_mode == 0o666
    with pytest.raises(ConfigError, match=r"x\.toml, line 2: \[daemon\] read-only-group.*no group"):
        parse_config('[daemon]\nread-only-group = "no-such-group-here"\n', "x.toml")
