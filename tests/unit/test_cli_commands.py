"""The verbs, run as processes against a daemon with fake workers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from pageferry.cli.exit_codes import MEANINGS, ExitCode
from pageferry.cli.main import VERBS
from pageferry.cli.presenting import QUESTION
from pageferry.model.verdict import Verdict
from tests.support.daemon_bench import DaemonBench, eventually, running_daemon

TARGET = "127.0.0.1:49499"


async def cli(bench: DaemonBench, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    command = [sys.executable, "-m", "pageferry.cli.main", *arguments]
    done = await trio.run_process(
        command,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env={**os.environ, "PAGEFERRY_SOCKET": str(bench.config.control_socket)},
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("name", "code", "status", "kind"),
    [
        ("web", ExitCode.COMPLETED, "completed", None),
        ("refuse", ExitCode.REFUSED, "failed", "refused"),
        ("unknown", ExitCode.UNKNOWN, "failed", "unknown"),
        ("die", ExitCode.FAILED, "failed", "failed"),
    ],
)
async def test_migrate_ends_with_one_line_and_its_status(
    tmp_path: Path, name: str, code: ExitCode, status: str, kind: str | None
) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest(name)
        bench.hooks.answer = [
            {"role": "source", "phase": "failed", "settled": True, "message": "on the source"}
        ]
        returned, out, err = await cli(bench, "migrate", name, TARGET, "--json")
    assert returned == code
    lines = json_lines(out)
    assert lines[0]["event"] == "started"
    assert [line["event"] for line in lines].count("finished") == 1
    assert lines[-1]["event"] == "finished"
    assert lines[-1]["status"] == status
    assert lines[-1]["exit-status"] == code
    assert (lines[-1]["error"] or {}).get("kind") == kind
    assert "Traceback" not in err


async def test_migrate_passes_its_options_on(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("web")
        options = (
            "--destination-guest web2 --verify --downtime-limit 50 --window 1048576"
            " --channels 3 --timeout 9.5 --compression auto --compression-level 3"
            " --max-bandwidth 1000000 --max-swap-bandwidth 2000000"
            " --auto-converge --max-cpu-throttle 60 --on-no-convergence switch-over"
            " --set swap-pacing=off --set cpu-throttle-initial=5 --set max-cpu-throttle=70"
        )
        assert (await cli(bench, "migrate", "web", TARGET, *options.split()))[0] == 0
        job = bench.packets()[0]
        assert job["destination-guest"] == "web2"
        wanted = {
            "downtime-limit": 50,
            "page-in-window": 1048576,
            "channels": 3,
            "max-rounds": 30,
            "verify": True,
            "timeout": 9.5,
            "compression": "auto",
            "compression-level": 3,
            "max-bandwidth": 1_000_000,
            "max-swap-bandwidth": 2_000_000,
            "auto-converge": True,
            "max-cpu-throttle": 60,
            "on-no-convergence": "switch-over",
            "swap-pacing": False,
            "cpu-throttle-initial": 5,
        }
        assert wanted.items() <= job["parameters"].items()


async def test_migrate_refused_by_the_daemon_still_ends_with_a_line(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        returned, out, err = await cli(bench, "migrate", "nobody", TARGET, "--json")
    assert returned == ExitCode.REFUSED
    (line,) = json_lines(out)
    assert line["event"] == "finished"
    assert line["exit-status"] == ExitCode.REFUSED
    assert "nobody" in line["error"]["message"]
    assert "what to do" in err


async def test_detach_leaves_the_migration_to_status_and_cancel(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("slow")
        returned, out, _ = await cli(bench, "migrate", "slow", TARGET, "--detach", "--json")
        assert returned == 0
        assert [line["event"] for line in json_lines(out)] == ["started", "detached"]
        migration_id = json_lines(out)[0]["migration-id"]

        returned, out, _ = await cli(bench, "status", migration_id[:8], "--json")
        assert (returned, json.loads(out)["migration-id"]) == (0, migration_id)
        returned, out, _ = await cli(bench, "status")
        assert returned == 0
        assert migration_id[:12] in out
        assert "slow" in out

        returned, out, err = await cli(bench, "cancel", "slow")
        assert (returned, err) == (0, "")
        assert "runs on the source" in out
        returned, out, _ = await cli(bench, "status", "slow")
        assert returned == 0
        assert "cancelled" in out
        returned, _, err = await cli(bench, "cancel", "slow")
        assert returned == ExitCode.FAILED
        assert "is over" in err


async def test_status_and_cancel_of_what_is_not(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        assert (await cli(bench, "status"))[1] == "no migrations\n"
        assert json.loads((await cli(bench, "status", "--json"))[1]) == []
        bench.guest("idle")
        assert (await cli(bench, "status", "idle"))[0] == ExitCode.FAILED
        returned, _, err = await cli(bench, "cancel", "idle")
        assert returned == ExitCode.FAILED
        assert "in no migration" in err
        assert (await cli(bench, "cancel", "nobody"))[0] == ExitCode.REFUSED


async def test_guests_recover_and_doctor(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        qmp = bench.guest("web")
        assert str(qmp) in (await cli(bench, "guests"))[1]
        assert json.loads((await cli(bench, "guests", "--json"))[1])[0]["name"] == "web"
        assert (await cli(bench, "recover"))[:2] == (0, "nothing was left open\n")
        assert (await cli(bench, "recover", "web"))[:2] == (0, "nothing was left open\n")
        assert (await cli(bench, "recover", "web", "--json"))[:2] == (0, "[]\n")
        returned, _, err = await cli(bench, "recover", "webb")
        assert returned == ExitCode.FAILED
        assert "neither a guest" in err
        bench.hooks.answer = [
            {"role": "source", "settled": False, "message": "paused", "guest": ""}
        ]
        returned, out, _ = await cli(bench, "recover", "abcdef123456")
        assert returned == ExitCode.UNKNOWN
        assert "paused" in out
        returned, out, _ = await cli(bench, "doctor")
        assert returned == 0  # degraded, but not blocked
        assert "what to do: switch swap on" in out
        assert "boot another kernel" not in out  # nothing is wrong with that one
        assert "all in all: degraded" in out
        assert f"12 MiB at {qmp}" in out
        bench.hooks.verdict = Verdict.BLOCKED
        returned, out, _ = await cli(bench, "doctor", "web", "--to", "127.0.0.1:1")
        assert returned == ExitCode.FAILED
        assert "boot another kernel" in out
        assert "cannot be reached" in out
        to_itself = str(bench.config.listen)
        returned, out, _ = await cli(bench, "doctor", "--to", to_itself, "--json")
        assert json.loads(out)[-1]["name"] == "agent"  # no guest is meant to go there
        returned, out, _ = await cli(bench, "doctor", "web", "--to", to_itself, "--json")
        there = [each for each in json.loads(out) if each["section"] == "destination"]
        assert [each["name"] for each in there] == ["agent", "guest", "memory", "swap", "tmpfs"]
        assert [each["verdict"] for each in there] == ["ok", "ok", "ok", "degraded", "ok"]
        assert there[3]["found"] == "4 MiB free, 5 MiB needed"
        assert "add swap there" in there[3]["fix"]
        assert bench.hooks.sides[-1] == "destination"
        returned, out, _ = await cli(
            bench, "doctor", "web", "--to", to_itself, "--destination-guest", "web2"
        )
        assert returned == ExitCode.FAILED
        assert "the agent there says: guest: there is no guest 'web2'" in out


async def test_daemon_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.sock"
    command = [sys.executable, "-m", "pageferry.cli.main", "status", "--socket", str(path)]
    done = await trio.run_process(
        [*command, "--json"], capture_stdout=True, capture_stderr=True, check=False
    )
    assert done.returncode == ExitCode.UNREACHABLE
    assert str(path) in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    told = json.loads(done.stdout)
    assert told["exit-status"] == ExitCode.UNREACHABLE
    assert told["error"]["kind"] == "unreachable"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_without_a_terminal_cancels_and_waits(tmp_path: Path, number: int) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("slow")
        returned, lines = await _signalled(bench, number)
    assert returned == ExitCode.CANCELLED
    assert lines[-1]["status"] == "cancelled"
    assert lines[-1]["error"]["guest-state"] == "runs on the source"


async def test_hang_up_detaches(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("slow")
        returned, lines = await _signalled(bench, signal.SIGHUP)
        assert returned == 0
        assert lines[-1]["event"] == "detached"
        assert bench.supervisor.migrations.running()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_watcher_that_is_stopped_leaves_the_migration_alone(
    tmp_path: Path, number: int
) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("slow")
        await cli(bench, "migrate", "slow", TARGET, "--detach", "--json")
        returned, lines = await _signalled(bench, number, "watch", "slow")
        assert returned == 0
        assert lines[-1]["event"] == "detached"
        assert [each.status for each in bench.supervisor.migrations.running()] == ["active"]


async def _signalled(
    bench: DaemonBench, number: int, *verb: str
) -> tuple[int, list[dict[str, Any]]]:
    words = verb or ("migrate", "slow", TARGET)
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "pageferry.cli.main", *words, "--json"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PAGEFERRY_SOCKET": str(bench.config.control_socket)},
    )
    assert process.stdout is not None
    out = b""
    with trio.fail_after(20):
        async with process.stdout:
            async for data in process.stdout:
                out += data
                if b'"phase":"resident"' in out and number:
                    process.send_signal(number)
                    number = 0
        returned = await process.wait()
    return returned, json_lines(out.decode())


class Terminal:
    """`pageferry migrate` on a terminal of its own."""

    def __init__(self, bench: DaemonBench, guest: str) -> None:
        self._master, slave = pty.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pageferry.cli.main", "migrate", guest, TARGET],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={
                **os.environ,
                "PAGEFERRY_SOCKET": str(bench.config.control_socket),
                "TERM": "xterm",
                "COLUMNS": "120",
            },
            start_new_session=True,
        )
        os.close(slave)
        os.set_blocking(self._master, False)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    async def shows(self, text: str, times: int = 1) -> None:
        await self._until(lambda: self.seen.count(text) >= times)

    async def ends(self) -> int:
        await self._until(lambda: self.process.poll() is not None)
        os.close(self._master)
        assert self.process.returncode is not None
        return self.process.returncode

    async def _until(self, condition: Callable[[], bool]) -> None:
        async def holds() -> bool:
            with contextlib.suppress(OSError):  # nothing there, or the other end is closed
                self.seen += os.read(self._master, 65536).decode(errors="replace")
            return condition()

        await eventually(holds)


@pytest.mark.parametrize(
    ("answer", "code"), [("y\n", ExitCode.CANCELLED), ("d\n", ExitCode.COMPLETED), (None, 4)]
)
async def test_ctrl_c_on_a_terminal_asks(tmp_path: Path, answer: str | None, code: int) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("slow")
        terminal = Terminal(bench, "slow")
        await terminal.shows("resident pass")
        terminal.process.send_signal(signal.SIGINT)
        await terminal.shows(QUESTION)
        if answer is None:
            terminal.process.send_signal(signal.SIGINT)
        else:
            terminal.type(answer)
        assert await terminal.ends() == code
        assert bool(bench.supervisor.migrations.running()) == (answer == "d\n")


async def test_no_at_the_question_goes_on(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("committed")
        terminal = Terminal(bench, "committed")
        await terminal.shows("commit")
        terminal.process.send_signal(signal.SIGINT)
        await terminal.shows("Cancel the migration?")
        terminal.type("n\n")
        await trio.sleep(0.2)
        assert terminal.process.poll() is None
        terminal.process.send_signal(signal.SIGINT)
        await terminal.shows("Cancel the migration?", times=2)
        terminal.type("y\n")
        # Too late to cancel: it says so, and goes through.
        assert await terminal.ends() == ExitCode.COMPLETED
        assert "nothing is left to cancel" in terminal.seen.replace("\r\n", " ")
        assert "runs on" in terminal.seen


def test_exit_statuses_are_all_in_the_help() -> None:
    command = [sys.executable, "-m", "pageferry.cli.main"]
    for verb in ([], *([name] for name in VERBS)):
        done = subprocess.run(
            [*command, *verb, "--help"], capture_output=True, text=True, check=True
        )
        for code, meaning in MEANINGS.items():
            assert f"{code.value}  {meaning}" in done.stdout
    assert subprocess.run([*command, "frob"], capture_output=True, check=False).returncode == 2
