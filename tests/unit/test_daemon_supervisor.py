"""Migrations as the daemon runs them, with workers that carry nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from pageferry.control.client import ControlClient, open_client
from pageferry.control.errors import CommandError
from pageferry.control.info import MigrationInfo
from pageferry.daemon.settling import living_worker
from pageferry.migration.journal import Journal, journal_path
from pageferry.model.phase import SourcePhase
from tests.support.daemon_bench import DaemonBench, eventually, running_daemon

TARGET = "127.0.0.1:49499"


async def finished(client: ControlClient, migration_id: str) -> MigrationInfo:
    async def is_final() -> bool:
        return (await client.query_migrate(migration_id=migration_id)).is_final

    await eventually(is_final)
    return await client.query_migrate(migration_id=migration_id)


async def migrate(bench: DaemonBench, client: ControlClient, name: str) -> str:
    bench.guest(name)
    return await client.migrate(name, TARGET)


async def test_migration_runs_to_its_end_and_is_remembered(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        with client.events() as events:
            qmp = bench.guest("web")
            migration_id = await client.migrate(
                "web", TARGET, destination_guest="web2", parameters={"channels": 3}
            )
            info = await finished(client, migration_id)
            told = []
            while True:
                event = await events.receive()
                told.append((event.name, event.data.get("status")))
                if event.data.get("status") == "completed":
                    break
        assert info.status == "completed"
        assert info.role == "source"
        assert info.destination == TARGET
        assert info.downtime_ms == 12.5
        assert ("MIGRATION_PASS", None) in told
        assert [status for name, status in told if name == "MIGRATION"] == [
            "setup",
            "active",
            "completed",
        ]
        job = bench.packets()[0]
        assert job["type"] == "job"
        assert job["role"] == "source"
        assert job["migration-id"] == migration_id
        assert (job["host"], job["port"]) == ("127.0.0.1", 49499)
        assert job["qmp"] == str(qmp)
        assert job["destination-guest"] == "web2"
        assert job["parameters"]["channels"] == 3
        assert job["state-dir"] == str(bench.config.state_directory)
        assert job["worker"]["pgid"] == job["worker"]["pid"] != os.getpgid(0)
        assert (await client.query_migrate(guest="web")).migration_id == migration_id
        assert [each.migration_id for each in await client.query_migrations()] == [migration_id]
        (guest,) = await client.query_guests()
        assert (guest.name, guest.present, guest.status) == ("web", True, "completed")


async def test_second_migration_of_one_guest_is_refused_by_whatever_name(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        first = await migrate(bench, client, "slow")
        alias = tmp_path / "alias.qmp"
        alias.symlink_to(tmp_path / "slow.qmp")
        for reference in ("slow", str(tmp_path / "slow.qmp"), "alias"):
            with pytest.raises(CommandError, match=f"already: {first}") as caught:
                await client.migrate(reference, TARGET)
            assert caught.value.report["kind"] == "refused"
        await client.cancel(guest="slow")
        assert (await finished(client, first)).status == "cancelled"
        again = await client.migrate("slow", TARGET)
        await client.cancel(migration_id=again)
        assert (await finished(client, again)).status == "cancelled"


async def test_refusal_and_unknown_outcome_keep_their_reports(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        info = await finished(client, await migrate(bench, client, "refuse"))
        assert info.status == "failed"
        assert info.error["kind"] == "refused"
        assert info.error["advice"] == "use share=on"
        info = await finished(client, await migrate(bench, client, "unknown"))
        assert info.error["kind"] == "unknown"
        assert info.raw["error-desc"] == "lost the other agent"


@pytest.mark.parametrize(
    ("answer", "status", "kind"),
    [
        ({"phase": "failed", "settled": True, "message": "on the source"}, "failed", "failed"),
        ({"phase": "commit", "settled": False, "message": "paused"}, "failed", "unknown"),
        ({"phase": "completed", "settled": True, "message": "gone"}, "completed", None),
        (None, "failed", "failed"),
    ],
)
async def test_dead_worker_is_settled_after_its_end(
    tmp_path: Path, answer: dict[str, Any] | None, status: str, kind: str | None
) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        bench.hooks.answer = [{"role": "source", **answer}] if answer else []
        migration_id = await migrate(bench, client, "die")
        info = await finished(client, migration_id)
        assert bench.hooks.settled == [migration_id]
        assert info.status == status
        assert info.error.get("kind") == kind
        if answer and kind:
            assert info.error["guest-state"] == answer["message"]
            assert "signal 9" in info.error["message"]
        # What it had reported before is not lost.
        assert info.transferred_bytes == 1 << 20


async def test_settling_that_fails_says_not_to_start_the_guest(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        bench.hooks.answer = [{}]  # a map without the keys: whatever goes wrong inside
        info = await finished(client, await migrate(bench, client, "die"))
        assert info.error["kind"] == "unknown"
        assert "do not start" in info.error["guest-state"]
        assert "pageferry recover" in info.error["advice"]


async def test_cancel_after_the_commit_is_refused(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        migration_id = await migrate(bench, client, "committed")

        async def is_committing() -> bool:
            return (await client.query_migrate(migration_id=migration_id)).phase == "commit"

        await eventually(is_committing)
        with pytest.raises(CommandError, match="committed"):
            await client.cancel(migration_id=migration_id)
        assert (await finished(client, migration_id)).status == "completed"
        with pytest.raises(CommandError, match="is over"):
            await client.cancel(migration_id=migration_id)


async def test_cancel_before_the_worker_is_there_is_not_lost(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        migration_id = await migrate(bench, client, "slow")
        await client.execute("migrate-cancel")  # the only one that runs
        assert (await finished(client, migration_id)).status == "cancelled"


async def test_stopping_the_daemon_cancels_and_waits(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        migration_id = await migrate(bench, client, "slow")
        await bench.packet("job")
    migration = bench.supervisor.migrations.by_id(migration_id)
    assert migration is not None
    assert migration.status == "cancelled"
    assert not bench.config.control_socket.exists()
    pid = bench.packets()[0]["worker"]["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_second_signal_leaves_workers_to_themselves(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        await migrate(bench, client, "committed")
        await bench.packet("job")
        worker = bench.supervisor.migrations.running()[0].worker
        assert worker is not None
        pid = worker.pid
        os.kill(pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep(0.2)
    # The end of the block sent the second one; the daemon has returned, the worker is there.
    os.kill(pid, signal.SIGCONT)
    with trio.fail_after(20):
        assert await worker.wait() == "exit status 7"  # it saw the end of the link


async def test_unknown_guests_and_unsafe_names_are_refused(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        for name in ("nobody", "../web", "", "a/b", "/etc/passwd"):
            with pytest.raises(CommandError) as caught:
                await client.migrate(name, TARGET)
            assert caught.value.report["kind"] == "refused"
        assert bench.packets() == []


async def test_guest_by_socket_needs_a_name_for_the_other_side(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, guest_sockets=None) as bench:
        path = str(bench.guest("web"))
        async with open_client(bench.config.control_socket) as client:
            with pytest.raises(CommandError, match="no name"):
                await client.migrate(path, TARGET)
            migration_id = await client.migrate(path, TARGET, destination_guest="web")
            assert (await finished(client, migration_id)).guest == path


async def test_other_hosts_need_certificates_or_plaintext_by_name(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path, tls_directory=tmp_path / "tls") as bench,
        open_client(bench.config.control_socket) as client,
    ):
        bench.guest("web")
        with pytest.raises(CommandError, match=r"tls/ca-cert\.pem is missing") as caught:
            await client.migrate("web", "192.0.2.1")
        assert "plaintext = true" in caught.value.desc
    (tmp_path / "plain").mkdir()
    plain = running_daemon(tmp_path / "plain", plaintext=True)
    async with plain as bench, open_client(bench.config.control_socket) as client:
        migration_id = await migrate(bench, client, "web")
        assert (await finished(client, migration_id)).status == "completed"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"guest": "web", "uri": "a:b:c"}, "a:b:c"),
        ({"guest": "web", "uri": TARGET, "parameters": {"chanels": 2}}, "chanels"),
        ({"guest": "web", "uri": TARGET, "parameters": {"channels": 0}}, "channels"),
        ({"guest": "web", "uri": TARGET, "inc": True}, "inc"),
    ],
)
async def test_wrong_arguments_start_nothing(
    tmp_path: Path, arguments: dict[str, Any], named: str
) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        bench.guest("web")
        with pytest.raises(CommandError, match=named):
            await client.execute("migrate", arguments)
        assert await client.query_migrations() == []


async def test_parameters_of_the_daemon_and_of_a_migration(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        await client.execute("migrate-set-parameters", {"channels": 5})
        assert (await client.execute("query-migrate-parameters"))["channels"] == 5
        migration_id = await migrate(bench, client, "slow")
        assert (await bench.packet("job"))["parameters"]["channels"] == 5
        await client.execute(
            "migrate-set-parameters", {"downtime-limit": 7, "migration-id": migration_id}
        )
        assert (await bench.packet("set"))["parameters"] == {"downtime-limit": 7}
        own = await client.execute("query-migrate-parameters", {"guest": "slow"})
        assert own["downtime-limit"] == 7
        assert (await client.execute("query-migrate-parameters"))["downtime-limit"] == 300


async def test_parameters_that_do_not_take_effect_are_an_error(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        migration_id = await migrate(bench, client, "slow")
        for values, said in (
            ({"channels": 3}, "channels cannot be changed"),
            ({"timeout": -1}, "timeout is -1"),
        ):
            with pytest.raises(CommandError, match=said):
                await client.execute(
                    "migrate-set-parameters", {**values, "migration-id": migration_id}
                )
        assert not [packet for packet in bench.packets() if packet["type"] == "set"]
        await migrate(bench, client, "stubborn")
        with pytest.raises(CommandError, match="no") as caught:
            await client.execute("migrate-set-parameters", {"timeout": 5, "guest": "stubborn"})
        assert caught.value.report["advice"] == "do not"
        own = await client.execute("query-migrate-parameters", {"guest": "stubborn"})
        assert "timeout" not in own
        ended = await migrate(bench, client, "web")
        await finished(client, ended)
        with pytest.raises(CommandError, match="not running"):
            await client.execute("migrate-set-parameters", {"timeout": 5, "migration-id": ended})


async def test_recover_leaves_migrations_alone_that_somebody_sees_to(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        bench.hooks.answer = [{"role": "source", "settled": True, "message": "fine"}]
        running = await migrate(bench, client, "slow")
        with pytest.raises(CommandError, match="still runs"):
            await client.execute("migrate-recover", {"migration-id": running})
        for migration_id in ("aaaaaaaa", "bbbbbbbb"):
            journal = Journal.create(bench.config.state_directory, migration_id, "source")
            await journal.record(SourcePhase.LOOK)
            if migration_id == "bbbbbbbb":
                await journal.record(SourcePhase.FAILED)
            journal.close()
        told = await client.execute("migrate-recover")
        assert [each["migration-id"] for each in told] == ["aaaaaaaa"]
        assert bench.hooks.settled == ["aaaaaaaa"]

        state_dir = bench.config.state_directory
        path = journal_path(state_dir, "aaaaaaaa", "source")
        process = await trio.lowlevel.open_process(["flock", "--no-fork", path, "sleep", "60"])
        try:

            async def is_seen() -> bool:
                return living_worker(state_dir, "aaaaaaaa") is not None

            await eventually(is_seen)
            told = await client.execute("migrate-recover", {"migration-id": "aaaaaaaa"})
            assert told[0]["settled"] is False
            assert str(process.pid) in told[0]["message"]
            assert bench.hooks.settled == ["aaaaaaaa"]
        finally:
            process.kill()
            await process.wait()


async def test_residency_and_doctor_go_through_their_hooks(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path) as bench,
        open_client(bench.config.control_socket) as client,
    ):
        qmp = bench.guest("web")
        told = await client.execute("query-residency", {"guest": "web"})
        assert told["total"]["swapped-bytes"] == 8192
        await client.execute("query-residency", {"guest": "web", "cells": 3})
        assert bench.hooks.looked_at == [(qmp, None), (qmp, 3)]
        for cells in (0, -1, 1 << 20):
            with pytest.raises(CommandError, match="cells"):
                await client.execute("query-residency", {"guest": "web", "cells": cells})
        checks = await client.doctor()
        assert [
            (each.section, each.name, each.guest)
            for each in checks
            if not each.name.endswith(".pem")
        ] == [
            ("kernel", "pagemap-scan", ""),
            ("host", "swap", ""),
            ("tls", "encryption", ""),
            ("guest", "ram", "web"),
        ]
