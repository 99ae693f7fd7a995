"""What Prometheus gets, and the dashboard that draws it."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from pageferry.control.client import open_client
from pageferry.control.errors import CommandError
from pageferry.daemon.config import ConfigError, parse_config
from pageferry.daemon.metrics import _BYTES
from pageferry.daemon.metrics_server import MetricsServer
from pageferry.migration.journal import Journal
from pageferry.model.phase import SourcePhase
from pageferry.net.address import Address
from tests.support.daemon_bench import DaemonBench, eventually, free_port, running_daemon

TARGET = "127.0.0.1:49499"
DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "pageferry.json"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def get(place: Address | Path, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    """Status and body, as a scraper gets them."""
    connection = http.client.HTTPConnection("localhost", timeout=10)
    if isinstance(place, Path):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(os.fspath(place))
    else:
        connection.sock = socket.create_connection((place.host, place.port), 10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def parse(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(place: Address | Path) -> Samples:
    status, text = await trio.to_thread.run_sync(get, place)
    assert status == 200
    return parse(text)


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


async def migrate(bench: DaemonBench, name: str) -> str:
    """Start one and wait until it cannot go further by itself."""
    async with open_client(bench.config.control_socket) as client:
        bench.guest(name)
        migration_id = await client.migrate(name, TARGET)

        async def is_there() -> bool:
            info = await client.query_migrate(migration_id=migration_id)
            return info.is_final or (name == "slow" and info.phase == "resident")

        await eventually(is_there)
    return migration_id


async def test_counters_count_and_gauges_show_what_runs(tmp_path: Path) -> None:
    place = Address("127.0.0.1", free_port())
    async with running_daemon(tmp_path, metrics_listen=place) as bench:
        before = await scrape(place)
        assert value(before, "pageferry_migrations_total", role="source", status="failed") == 0
        assert value(before, "pageferry_migrations_running", role="source") == 0
        await migrate(bench, "web")
        await migrate(bench, "refuse")
        slow = await migrate(bench, "slow")
        now = await scrape(place)
        assert value(now, "pageferry_migrations_total", role="source", status="completed") == 1
        assert value(now, "pageferry_migrations_total", role="source", status="failed") == 1
        assert value(now, "pageferry_migrations_running", role="source") == 1
        # One that is over, one refused, and one that runs, each with 1 MiB by its reports.
        assert value(now, "pageferry_sent_bytes_total", role="source") == 3 << 20
        assert value(now, "pageferry_paged_in_bytes_total", role="source") == 3 * 4096
        assert value(now, "pageferry_migration_downtime_seconds_sum") == pytest.approx(0.0125)
        assert value(now, "pageferry_migration_total_bytes", guest="slow", role="source") == 2 << 20
        phase = {"guest": "slow", "role": "source", "phase": "resident"}
        assert value(now, "pageferry_migration_phase", **phase) == 1
        assert value(now, "pageferry_control_commands_total", command="migrate", result="ok") == 3
        assert (value(now, "process_open_fds") or 0) > 3
        async with open_client(bench.config.control_socket) as client:
            for command in ("frob", "made-up"):
                with pytest.raises(CommandError):
                    await client.execute(command)
            await client.cancel(migration_id=slow)
            assert (await client.wait(slow)).status == "cancelled"
            then = await scrape(place)
            assert value(then, "pageferry_control_clients") == 1
        assert value(then, "pageferry_sent_bytes_total", role="source") == 3 << 20
        assert value(then, "pageferry_migrations_running", role="source") == 0
        assert not [labels for name, labels in then if ("guest", "slow") in labels]
        unknown = {"command": "unknown", "result": "error"}
        assert value(then, "pageferry_control_commands_total", **unknown) == 2


async def test_unix_socket_and_other_requests(tmp_path: Path) -> None:
    place = tmp_path / "metrics.sock"
    async with running_daemon(tmp_path, metrics_listen=place):
        assert value(await scrape(place), "pageferry_control_clients") == 0
        for path, method, status in (
            ("/", "GET", 404),
            ("/metrics", "POST", 405),
            ("/metrics?name=x", "GET", 200),
            ("/metrics", "HEAD", 200),
        ):
            assert (await trio.to_thread.run_sync(get, place, path, method))[0] == status
        for garbage in (b"\x00\x01\x02\r\n\r\n", b"GET", b""):
            stream = await trio.open_unix_socket(os.fspath(place))
            async with stream:
                await stream.send_all(garbage)
                await stream.send_eof()
                with trio.fail_after(5):
                    while await _received(stream):
                        continue
        assert value(await scrape(place), "pageferry_control_clients") == 0
    assert not place.exists()


async def _received(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""


async def test_off_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_arguments: object) -> None:
        pytest.fail("nobody asked for metrics")

    monkeypatch.setattr(MetricsServer, "serve", never)
    async with running_daemon(tmp_path):
        await trio.sleep(0.05)


def test_configuration_of_metrics() -> None:
    def listen(text: str) -> object:
        return parse_config(f"[metrics]\nlisten = {text}\n", "x.toml").metrics_listen

    assert listen('"127.0.0.1"') == Address("127.0.0.1", 9477)
    assert listen('"[::]:9000"') == Address("::", 9000)
    assert listen('"/run/x.sock"') == Path("/run/x.sock")
    for wrong in ("9477", '"a:b:c"', '""'):
        with pytest.raises(ConfigError, match=r"x\.toml, line 2: \[metrics\] listen"):
            listen(wrong)
    with pytest.raises(ConfigError) as caught:
        parse_config('[metrics]\nlistn = "x"\n', "x.toml")
    assert caught.value.advice == "did you mean listen?"


async def test_what_is_left_open_is_counted(tmp_path: Path) -> None:
    place = Address("127.0.0.1", free_port())
    async with running_daemon(tmp_path, metrics_listen=place) as bench:

        async def unsettled() -> float | None:
            return value(await scrape(place), "pageferry_migrations_unsettled")

        assert await unsettled() == 0
        bench.hooks.answer = [{"role": "source", "settled": False, "message": "not yet"}]
        journal = Journal.create(bench.config.state_directory, "aaaaaaaa", "source")
        await journal.record(SourcePhase.COMMIT)
        journal.close()
        bench.supervisor.leftovers.note("aaaaaaaa")
        await eventually(lambda: _tried(bench))
        assert await unsettled() == 1
        bench.hooks.answer = [{"role": "source", "settled": True, "message": "gone"}]

        async def is_settled() -> bool:
            return await unsettled() == 0

        await eventually(is_settled)


async def _tried(bench: DaemonBench) -> bool:
    return bool(bench.hooks.settled)


async def exported(tmp_path: Path) -> dict[str, str]:
    """Every family's name and kind, with a migration running."""
    place = tmp_path / "m.sock"
    async with running_daemon(tmp_path, metrics_listen=place) as bench:
        await migrate(bench, "web")
        await migrate(bench, "slow")
        text = (await trio.to_thread.run_sync(get, place))[1]
    return {family.name: family.type for family in text_string_to_metric_families(text)}


async def test_names_follow_the_conventions(tmp_path: Path) -> None:
    families = await exported(tmp_path)
    ours = {name: kind for name, kind in families.items() if name.startswith("pageferry_")}
    assert len(ours) > 18
    for name, kind in ours.items():
        assert re.fullmatch(r"[a-z_]+", name)
        assert not re.search(r"_(ms|milliseconds|kib|mib|pages|percent)(_|$)", name), name
        if kind == "histogram":
            assert name.endswith("_seconds")
    assert {f"{name}" for name in _BYTES} <= set(ours)


async def test_dashboard_draws_what_there_is(tmp_path: Path) -> None:
    families = await exported(tmp_path)
    names = set(families)
    for name, kind in families.items():
        if kind == "counter":
            names.add(f"{name}_total")
        if kind == "histogram":
            names.add(f"{name}_bucket")
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    used = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            found = set(re.findall(r"\b(?:pageferry|process)_[a-z_]+", target["expr"]))
            assert found
            assert found <= names, found - names
            used |= found
    assert "pageferry_paged_in_bytes_total" in used
