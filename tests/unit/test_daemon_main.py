"""Start-up and end of pageferryd as a process."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pageferry.daemon.main import main, state_directory
from pageferry.model.errors import RefusedError
from tests.support.daemon_bench import free_port

COMMAND = [sys.executable, "-m", "pageferry.daemon.main"]


def write_config(directory: Path, **daemon: object) -> Path:
    values = {
        "control-socket": str(directory / "run" / "control.sock"),
        "state-directory": str(directory / "state"),
        "listen": f"127.0.0.1:{free_port()}",
        **daemon,
    }
    path = directory / "pageferryd.toml"
    path.write_text("[daemon]\n" + "".join(f'{key} = "{value}"\n' for key, value in values.items()))
    return path


@contextmanager
def daemon(config: Path) -> Iterator[subprocess.Popen[str]]:
    """A daemon that is ready; ended at the end of the block."""
    command = [*COMMAND, "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "listening on" in line:
                    break
            else:
                pytest.fail(f"did not start: {lines}")
            yield process
        finally:
            process.kill()


def start_error(config: Path) -> str:
    done = subprocess.run(
        [*COMMAND, "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    config = write_config(tmp_path)
    with daemon(config) as process:
        assert (tmp_path / "run" / "control.sock").is_socket()
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
        process.send_signal(number)
        assert process.wait(20) == 0
    assert not (tmp_path / "run" / "control.sock").exists()


def test_killed_daemon_leaves_a_socket_that_the_next_one_replaces(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with daemon(config) as process:
        process.kill()
    assert (tmp_path / "run" / "control.sock").exists()
    with daemon(config):
        pass


def test_second_daemon_is_told_what_is_taken(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with daemon(config):
        assert "uses the state directory" in start_error(config)
        other = write_config(tmp_path, **{"state-directory": str(tmp_path / "other")})
        assert "already listens on" in start_error(other)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        error = start_error(write_config(tmp_path, listen=f"127.0.0.1:{port}"))
        assert f"127.0.0.1:{port}" in error
        assert "set listen" in error
    assert not (tmp_path / "run" / "control.sock").exists()


def test_configuration_error_is_told_without_a_traceback(tmp_path: Path) -> None:
    config = write_config(tmp_path, **{"control-sockt": "/x"})
    error = start_error(config)
    assert "control-sockt" in error
    assert "did you mean control-socket?" in error


def test_check_only_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert main(["--config", str(config), "--check"]) == 0
    assert "fine" in capsys.readouterr().out
    assert not (tmp_path / "state").exists()


def test_state_directory_is_made_private_and_locked(tmp_path: Path) -> None:
    path = tmp_path / "a" / "state"
    path.mkdir(parents=True, mode=0o755)
    with state_directory(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        with pytest.raises(RefusedError, match="another pageferryd"), state_directory(path):
            pass
    with state_directory(path):
        pass


def test_state_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "state"
    with pytest.raises(RefusedError, match="state directory") as caught, state_directory(path):
        pass
    assert os.fspath(path) in caught.value.message
