"""The daemon's control socket, driven by QEMU's own tools."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sysconfig
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from qemu.qmp import ExecuteError, QMPClient

from pageferry.control import declarations, schema
from pageferry.control.registry import Declaration
from pageferry.migration.journal import Journal
from pageferry.model.phase import SourcePhase
from tests.support.daemon_bench import DaemonBench, running_daemon

TARGET = "127.0.0.1:49499"

DECLARED = {
    value.name: value for value in vars(declarations).values() if isinstance(value, Declaration)
}
EVENTS = {event.name: event for event in declarations.EVENTS}


async def with_qmp_client(bench: DaemonBench, talk: Callable[[QMPClient], Awaitable[None]]) -> None:
    """Run *talk* with qemu.qmp's client connected, in a thread with asyncio's own loop."""

    async def session() -> None:
        qmp = QMPClient("test")
        await qmp.connect(os.fspath(bench.config.control_socket))
        try:
            await talk(qmp)
        finally:
            await qmp.disconnect()

    def run() -> None:
        # trio-asyncio makes asyncio.run start its own kind of loop, also in this thread.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(asyncio.wait_for(session(), 30))

    await trio.to_thread.run_sync(run)


async def call(qmp: QMPClient, name: str, **arguments: object) -> Any:
    """Run a command, and hold its answer against what is declared."""
    answer = await qmp.execute(name, {key.replace("_", "-"): v for key, v in arguments.items()})
    schema.check(DECLARED[name].returns, answer, name)
    return answer


def event_fits(event: Any) -> None:
    schema.check(schema.Struct("", EVENTS[event["event"]].members), event["data"], event["event"])


async def test_a_whole_migration_with_qemus_client(tmp_path: Path) -> None:
    async def talk(qmp: QMPClient) -> None:
        with qmp.listener(list(EVENTS)) as events:
            started = await call(qmp, "migrate", guest="web", uri=f"tcp:{TARGET}")
            seen = []
            while True:
                event: Any = await events.get()
                event_fits(event)
                seen.append(event["event"])
                if event["data"].get("status") in ("completed", "failed"):
                    break
        assert {"MIGRATION", "MIGRATION_PASS", "MIGRATION_RESIDENCY"} <= set(seen)
        info = await call(qmp, "query-migrate", guest="web")
        assert info["migration-id"] == started["migration-id"]
        assert info["status"] == "completed"
        assert (await call(qmp, "query-migrate-parameters", guest="web"))["channels"] == 2
        (record,) = await call(qmp, "query-migrate-history")
        assert record["info"] == info

    async with running_daemon(tmp_path) as bench:
        bench.guest("web")
        await with_qmp_client(bench, talk)


async def test_every_query_answers_as_declared(tmp_path: Path) -> None:
    async def talk(qmp: QMPClient) -> None:
        for name, declaration in DECLARED.items():
            if declaration.only_reads and name != "qmp_capabilities":
                needs_guest = any(
                    member.name == "guest" and not member.optional
                    for member in declaration.arguments
                )
                await call(qmp, name, **({"guest": "web"} if needs_guest else {}))
        await call(qmp, "migrate-recover")
        await call(qmp, "migrate-set-parameters", channels=3, timeout=1.5)
        assert (await call(qmp, "query-migrate-parameters"))["timeout"] == 1.5
        assert await call(qmp, "query-migrate") == {}

    async with running_daemon(tmp_path) as bench:
        bench.guest("web")
        await with_qmp_client(bench, talk)


async def test_schema_lists_just_what_is_there(tmp_path: Path) -> None:
    async def talk(qmp: QMPClient) -> None:
        entries: Any = await call(qmp, "query-qmp-schema")
        commands: Any = await call(qmp, "query-commands")
        described = {each["name"] for each in entries if each["meta-type"] == "command"}
        assert described == {each["name"] for each in commands} == set(DECLARED)
        assert {e["name"] for e in entries if e["meta-type"] == "event"} == set(EVENTS)

    async with running_daemon(tmp_path) as bench:
        await with_qmp_client(bench, talk)


async def test_wrong_calls_change_nothing(tmp_path: Path) -> None:
    async def talk(qmp: QMPClient) -> None:
        for arguments, said in (
            ({"guest": "web"}, "'uri' is missing"),
            ({"guest": "web", "uri": TARGET, "parameters": {"channels": "2"}}, "channels"),
            ({"guest": "web", "uri": TARGET, "parameters": {"chanels": 2}}, "chanels"),
            ({"guest": "web", "uri": TARGET, "parameters": {"channels": 0}}, "channels is 0"),
            ({"guest": "web", "uri": TARGET, "parameters": {"residency-way": "guess"}}, "guess"),
            ({"guest": "web", "uri": "://"}, "://"),
        ):
            with pytest.raises(ExecuteError) as caught:
                await qmp.execute("migrate", dict(arguments))
            assert said in str(caught.value)
            assert caught.value.error_class == "GenericError"
        with pytest.raises(ExecuteError, match="nobody") as caught:
            await qmp.execute("migrate", {"guest": "nobody", "uri": TARGET})
        assert caught.value.error_class == "DeviceNotFound"
        with pytest.raises(ExecuteError, match="channels is 99"):
            await qmp.execute("migrate-set-parameters", {"timeout": 5, "channels": 99})
        assert "timeout" not in await call(qmp, "query-migrate-parameters")
        assert await call(qmp, "query-migrations") == []
        with pytest.raises(ExecuteError) as caught:
            await qmp.execute("query-migrate", {"migration-id": "abcd"})
        assert caught.value.error_class == "DeviceNotFound"

    async with running_daemon(tmp_path) as bench:
        bench.guest("web")
        await with_qmp_client(bench, talk)


def qmp_shell(socket_path: Path, script: str, home: Path) -> list[dict[str, Any]]:
    """What qmp-shell answers to the lines of *script*; it keeps a history file in HOME."""
    program = Path(sysconfig.get_path("scripts"), "qmp-shell")
    done = subprocess.run(
        [program, os.fspath(socket_path)],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HOME": os.fspath(home), "TERM": "dumb"},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Welcome to the QMP low-level shell!" in done.stdout
    answers = []
    for line in done.stdout.splitlines():
        text = line.removeprefix("(QEMU) ").strip()
        if text.startswith("{"):
            answers.append(json.loads(text))
    return answers


async def test_qmp_shell_drives_a_migration(tmp_path: Path) -> None:
    script = (
        "query-status\n"
        "query-guests\n"
        "migrate-set-parameters downtime-limit=50 verify=true\n"
        "query-migrate-parameters\n"
        f"migrate guest=slow uri=tcp:{TARGET} parameters.channels=3\n"
        "query-migrate guest=slow\n"
        "migrate guest=slow\n"
        "migrate-cancel guest=slow\n"
        "frob\n"
        "query-residency guest=web cells=16\n"
    )
    async with running_daemon(tmp_path) as bench:
        bench.guest("slow")
        bench.guest("web")
        answers = await trio.to_thread.run_sync(
            qmp_shell, bench.config.control_socket, script, tmp_path
        )
    answers = [answer for answer in answers if "event" not in answer]
    returns: list[Any] = [answer.get("return") for answer in answers]
    errors = [answer.get("error", {}) for answer in answers]
    assert len(answers) == 10
    assert returns[0]["access"] == "full"
    assert [guest["name"] for guest in returns[1]] == ["slow", "web"]
    assert returns[2] == {}
    assert (returns[3]["downtime-limit"], returns[3]["verify"]) == (50, True)
    assert returns[5]["migration-id"] == returns[4]["migration-id"]
    assert "'uri' is missing" in errors[6]["desc"]
    assert returns[7] == {}
    assert errors[8]["class"] == "CommandNotFound"
    assert returns[9]["blocks"][0]["swapped-map"] == [1, 0, 1]
    (job,) = [packet for packet in bench.packets() if packet["type"] == "job"]
    assert job["parameters"]["channels"] == 3
    assert job["parameters"]["downtime-limit"] == 50


async def test_history_outlives_the_daemon_and_knows_what_journals_know(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("web")
        await with_qmp_client(bench, _migrate_web)
    journal = Journal.create(tmp_path / "state", "0123456789abcdef", "source")
    await journal.record(SourcePhase.LOOK, guest="db", qmp="/x", host="other", port=1234)
    await journal.record(SourcePhase.CANCELLED, reason="the operator said so")
    journal.close()
    lost_id = "fedcba9876543210"
    journal = Journal.create(tmp_path / "state", lost_id, "source")
    await journal.record(SourcePhase.LOOK, guest="dns", qmp="/y", host="other", port=1234)
    phases = list(SourcePhase)
    for phase in phases[1 : phases.index(SourcePhase.COMMIT) + 1]:
        await journal.record(phase)
    notes = {"guest-state": "it ended there", "lost": True}
    await journal.record(SourcePhase.COMPLETED, reason="its worker ended", **notes)
    journal.close()

    async def talk(qmp: QMPClient) -> None:
        assert await call(qmp, "query-migrations") == []
        lost = (await call(qmp, "query-migrate-history", guest="dns"))[0]
        assert lost["status"] == "failed", "the guest is nowhere, whoever had it last"
        assert lost["error"]["kind"] == "unknown"
        told = (await call(qmp, "query-migrate", **{"migration-id": lost_id}))["error"]
        assert told["message"] == "its worker ended"
        assert told["guest-state"] == "it ended there"
        assert lost_id in told["advice"]
        found = await call(qmp, "query-migrate-history")
        assert [(each["guest"], each["status"]) for each in found] == [
            ("dns", "failed"),
            ("db", "cancelled"),
            ("web", "completed"),
        ]
        del found[0]
        assert "never runs" in found[0]["error"]["guest-state"]
        assert found[0]["destination"] == "other:1234"
        assert found[0]["reason"] == "the operator said so"
        assert found[0]["started"] <= found[0]["ended"]
        assert found[1]["info"]["downtime"] == 12.5
        assert len(await call(qmp, "query-migrate-history", limit=1)) == 1
        assert len(await call(qmp, "query-migrate-history", guest="web")) == 1
        with pytest.raises(ExecuteError, match="limit"):
            await qmp.execute("query-migrate-history", {"limit": 0})

    async with running_daemon(tmp_path) as bench:
        await with_qmp_client(bench, talk)


async def _migrate_web(qmp: QMPClient) -> None:
    with qmp.listener("MIGRATION") as events:
        await call(qmp, "migrate", guest="web", uri=TARGET)
        event: Any = await events.get()
        while event["data"]["status"] != "completed":
            event = await events.get()
