"""The verbs beside migrate and cancel, run as processes against a daemon with fake workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import shtab
import trio

from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.main import VERBS
from pageferry.cli.values import FILE_COMPLETION, parameters_from, size_of
from tests.support.daemon_bench import DaemonBench, running_daemon
from tests.unit.test_cli_commands import TARGET, cli, json_lines
from tests.unit.test_cli_pictures import unpack_png


async def test_watch_attaches_to_what_another_started(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("slow")
        await cli(bench, "migrate", "slow", TARGET, "--detach", "--json")
        await bench.packet("job")
        answers: list[tuple[int, str, str]] = []
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                answers.append(await cli(bench, "watch", "slow", "--json"))

            for _ in range(2):
                nursery.start_soon(watch)
            await trio.sleep(1)
            assert (await cli(bench, "cancel", "slow"))[0] == 0
        for returned, out, _ in answers:
            assert returned == ExitCode.CANCELLED
            lines = json_lines(out)
            assert lines[0]["event"] == "started"
            assert lines[-1]["event"] == "finished"
            assert lines[-1]["status"] == "cancelled"
        returned, out, _ = await cli(bench, "watch", "slow", "--json")
        assert returned == ExitCode.CANCELLED  # how it ended
        bench.guest("idle")
        returned, out, err = await cli(bench, "watch", "idle", "--json")
        assert returned == ExitCode.FAILED
        assert "in no migration" in err


async def test_set_changes_a_running_migration_and_the_defaults(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("slow")
        await cli(bench, "migrate", "slow", TARGET, "--detach", "--json")
        returned, out, err = await cli(
            bench, "set", "slow", "downtime-limit=40", "page-in-window=2M", "verify=on", "--json"
        )
        assert (returned, err) == (0, "")
        assert json.loads(out)["page-in-window"] == 2 << 20
        assert (await bench.packet("set"))["parameters"] == {
            "downtime-limit": 40,
            "page-in-window": 2 << 20,
            "verify": True,
        }
        returned, out, _ = await cli(bench, "set", "slow", "--json", "max-rounds=9")
        assert json.loads(out)["max-rounds"] == 9
        assert (await cli(bench, "set", "slow", "max-rounds=9", "--nonsense"))[0] == ExitCode.USAGE
        returned, _, err = await cli(bench, "set", "slow", "channels=4")
        assert returned == ExitCode.REFUSED
        assert "cannot be changed while a migration runs" in err
        assert "what to do" in err
        returned, out, _ = await cli(bench, "set", "--defaults", "timeout=9.5", "--json")
        assert json.loads(out)["timeout"] == 9.5
        returned, out, _ = await cli(bench, "set", "--defaults", "timeout=0")
        assert returned == 0
        shown = dict(line.split()[:2] for line in out.splitlines())
        assert (shown["timeout"], shown["verify"], shown["max-bandwidth"]) == ("never", "off", "no")
        returned, out, _ = await cli(bench, "set", "slow")
        assert returned == 0
        assert "downtime-limit" in out
        assert "40" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["slow", "downtime=5"], "no parameter 'downtime'"),
        (["slow", "downtime-limit=soon"], "a whole number"),
        (["slow", "page-in-window=4X"], "a size"),
        (["slow", "timeout=nan"], "a number"),
        (["slow", "verify=perhaps"], "on or off"),
        (["slow", "residency-way=guess"], "pagemap, cachestat, mincore"),
        (["slow", "verify"], "give verify a value"),
        ([], "which migration"),
    ],
)
async def test_set_says_what_is_wrong(tmp_path: Path, arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "pageferry.cli.main", "set", *arguments]
    done = await trio.run_process(
        [*command, "--socket", str(tmp_path / "none")], capture_stderr=True, check=False
    )
    assert done.returncode == ExitCode.USAGE
    assert said in done.stderr.decode()


async def test_history_shows_what_is_over(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        assert (await cli(bench, "history"))[1] == "no migrations\n"
        for name in ("web", "refuse"):
            bench.guest(name)
            await cli(bench, "migrate", name, TARGET, "--json")
        returned, out, _ = await cli(bench, "history")
        assert returned == 0
        lines = out.splitlines()
        assert len(lines) == 3
        assert "refuse" in lines[1]
        assert "the RAM is not shared" in lines[1]
        assert "completed" in lines[2]
        assert " 12 ms " in lines[2]
        returned, out, _ = await cli(bench, "history", "web", "--json")
        assert [each["guest"] for each in json.loads(out)] == ["web"]


async def test_what_is_over_is_known_to_the_next_daemon(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        for name in ("web", "refuse"):
            bench.guest(name)
            await cli(bench, "migrate", name, TARGET, "--json")
    async with running_daemon(tmp_path) as bench:
        assert json.loads((await cli(bench, "status", "--json"))[1]) == []
        told = json.loads((await cli(bench, "status", "web", "--json"))[1])
        assert (told["status"], told["downtime"]) == ("completed", 12.5)
        migration_id = told["migration-id"]
        for reference in (migration_id, migration_id[:8]):
            assert json.loads((await cli(bench, "status", reference, "--json"))[1]) == told
        returned, out, _ = await cli(bench, "watch", migration_id, "--json")
        assert (returned, json_lines(out)[-1]["info"]) == (0, told)
        for words in (["cancel", migration_id], ["set", migration_id, "verify=on"]):
            returned, _, err = await cli(bench, *words)
            assert returned == ExitCode.FAILED
            assert f"migration {migration_id} is over: completed" in err


async def test_residency_in_letters_and_as_files(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("web")
        returned, out, err = await cli(bench, "residency", "web")
        assert (returned, err) == (0, "")
        assert "4 KiB" in out
        assert "8 KiB" in out
        assert "s resident" not in out
        assert "# resident" in out
        returned, out, _ = await cli(bench, "residency", "web", "--json")
        assert "resident-map" not in json.loads(out)["blocks"][0]
        picture = tmp_path / "ram.png"
        assert (await cli(bench, "residency", "web", "--output", str(picture)))[0] == 0
        assert len(unpack_png(picture.read_bytes())[0]) == 128 * 6
        picture = tmp_path / "ram.svg"
        assert (await cli(bench, "residency", "web", "--output", str(picture)))[0] == 0
        assert ET.parse(picture).getroot().tag.endswith("svg")
        returned, _, err = await cli(bench, "residency", "web", "--output", "/tmp/x.gif")
        assert returned == ExitCode.USAGE
        assert "PNG or SVG" in err
        returned, _, err = await cli(bench, "residency", "web", "--output", "/nowhere/x.png")
        assert returned == ExitCode.FAILED
        assert "/nowhere/x.png" in err


async def test_estimate_tells_costs_and_what_they_rest_on(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("web")
        returned, out, _ = await cli(bench, "estimate", "web", "--bandwidth", "500M")
        assert returned == 0
        assert "640.0 MiB" in out
        assert "500.0 MiB/s" in out
        assert out.count("assumed") == 1
        assert bench.hooks.estimated[0]["parameters"]["downtime-limit"] == 300
        bench.hooks.converges = False
        returned, out, _ = await cli(
            bench, "estimate", "web", "--sample", "0.5", "--downtime-limit", "5"
        )
        assert "would not converge" in out
        assert bench.hooks.estimated[1]["sample-time"] == 0.5
        assert bench.hooks.estimated[1]["parameters"]["downtime-limit"] == 5
        assert json.loads((await cli(bench, "estimate", "web", "--json"))[1])["rounds"] == 3
        for option in ("--sample=0", "--sample=100", "--bandwidth=0"):
            assert (await cli(bench, "estimate", "web", option))[0] == ExitCode.FAILED
        assert len(bench.hooks.estimated) == 3


def complete(bench: DaemonBench, script: Path, line: str) -> list[str]:
    """What bash offers at the end of *line*."""
    words = line.split(" ")
    program = f"""
        pageferry() {{ {sys.executable} -m pageferry.cli.main "$@"; }}
        export -f pageferry
        timeout() {{ shift; "$@"; }}
        source {script}
        COMP_WORDS=({" ".join(repr(word) for word in words)})
        COMP_CWORD={len(words) - 1}
        complete -p pageferry | grep -q -- "-F _pageferry pageferry"
        _pageferry pageferry {words[-1]!r} {words[-2]!r}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PAGEFERRY_SOCKET": str(bench.config.control_socket)},
    )
    return [word for word in done.stdout.split() if word]


async def test_bash_completes_verbs_options_guests_and_migrations(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("web1")
        bench.guest("slow")
        await cli(bench, "migrate", "slow", TARGET, "--detach", "--json")
        script = tmp_path / "completion"
        script.write_text((await cli(bench, "completion", "bash"))[1])

        async def offered(line: str) -> list[str]:
            return await trio.to_thread.run_sync(complete, bench, script, line)

        assert set(await offered("pageferry ")) == set(VERBS)
        assert await offered("pageferry migr") == ["migrate"]
        assert "--downtime-limit" in await offered("pageferry migrate --down")
        assert await offered("pageferry migrate we") == ["web1"]
        assert "slow" in await offered("pageferry watch sl")
        assert "slow" in await offered("pageferry recover sl")
        assert await offered("pageferry set slow downtime-") == ["downtime-limit="]
        assert await offered("pageferry migrate web1 x --set swap-") == ["swap-pacing="]


def test_zsh_script_defines_every_verb() -> None:
    command = [sys.executable, "-m", "pageferry.cli.main", "completion", "zsh"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text.startswith("#compdef pageferry")
    for verb in VERBS:
        assert f"pageferry_{verb}" in text


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("65536", 65536), ("512K", 512 << 10), ("4M", 4 << 20), ("4 MiB", 4 << 20)],
)
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size


def test_parameters_of_each_kind() -> None:
    assert parameters_from(
        ["channels=3", "timeout=2.5", "verify=no", "page-in-window=1M", "residency-way=mincore"]
    ) == {
        "channels": 3,
        "timeout": 2.5,
        "verify": False,
        "page-in-window": 1 << 20,
        "residency-way": "mincore",
    }


def test_files_are_completed_as_shtab_does() -> None:
    assert {shell: shtab.FILE[shell] for shell in FILE_COMPLETION} == FILE_COMPLETION


def test_a_verb_loads_no_other_verbs() -> None:
    program = (
        "import sys; from pageferry.cli.main import main\n"
        "try: main(['status', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('cryptography', 'shtab') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
