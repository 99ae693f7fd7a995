"""The configuration file: what is taken, and what each mistake is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pageferry.daemon.config import Config, ConfigError, load_config, parse_config
from pageferry.model.launch import Launch
from pageferry.net.address import Address

WHOLE = """
[daemon]
control-socket = "/run/x/control.sock"
control-socket-mode = "0660"
listen = "[::1]:1234"
state-directory = "/var/lib/x"
guest-sockets = "/run/qemu/{name}.qmp"

[defaults]
downtime-limit = 100
page-in-window = 1048576
channels = 4

[guests.web-1]
qmp = "/run/qemu/web.qmp"

[guests."db.example"]
qmp = "/run/qemu/db.qmp"
"""


def test_whole_configuration() -> None:
    config = parse_config(WHOLE, "x.toml")
    assert config.control_socket == Path("/run/x/control.sock")
    assert config.control_socket_mode == 0o660
    assert config.listen == Address("::1", 1234)
    assert config.state_directory == Path("/var/lib/x")
    assert config.guest_sockets == "/run/qemu/{name}.qmp"
    assert config.defaults.downtime_limit_ms == 100
    assert config.defaults.window_bytes == 1 << 20
    assert config.defaults.channels == 4
    assert config.guests == {
        "web-1": Path("/run/qemu/web.qmp"),
        "db.example": Path("/run/qemu/db.qmp"),
    }


def test_empty_configuration_is_the_defaults() -> None:
    assert parse_config("", "x.toml") == Config()
    assert Config().listen.is_loopback
    assert not Config().plaintext


@pytest.mark.parametrize(
    ("text", "line", "named", "advice"),
    [
        ('\n[daemon]\ncontrol-sockt = "/x"\n', 3, "control-sockt", "control-socket"),
        ("[demon]\n", 1, "demon", "daemon"),
        ("[daemon]\n\nplaintext = 1\n", 3, "plaintext", "true or false"),
        ('[daemon]\ncontrol-socket = "x"\n', 2, "control-socket", "path"),
        ('[daemon]\ncontrol-socket-mode = "0999"\n', 2, "control-socket-mode", "0660"),
        ("[daemon]\nlisten = 49400\n", 2, "listen", "HOST:PORT"),
        ('[daemon]\nlisten = "127.0.0.1:x"\n', 2, "listen", "HOST:PORT"),
        ('[daemon]\nguest-sockets = "/run/qemu.qmp"\n', 2, "guest-sockets", "{name}"),
        ('[daemon]\nguest-sockets = "/run/{name}/{x}"\n', 2, "guest-sockets", "{name}"),
        ("# c\n[defaults]\nchannels = 0\n", 3, "channels", "1 to"),
        ("[defaults]\nverify = true\nchanels = 2\n", 3, "chanels", "channels"),
        ("[defaults]\nresidency-way = 'guess'\n", 2, "residency-way", "cachestat"),
        ("daemon = 3\n", 1, "daemon", "[daemon]"),
        ("[guests]\nweb = '/run/x'\n", 2, "web", "[guests.web]"),
        ("[guests.web]\n", 1, "web", "QMP socket"),
        ("[guests.web]\nqpm = '/x'\n", 2, "qpm", "qmp"),
        ("[guests.a]\nqmp = '/a'\n[guests.\"../x\"]\nqmp = '/x'\n", 3, "../x", "letters"),
        ("[guests.web]\nqmp = 'web.qmp'\n", 2, "qmp", "path"),
        ("[tls]\ndirectory = 'tls'\n", 2, "directory", "path"),
        ("[tls]\nloopback = 'no'\n", 2, "loopback", "true or false"),
        ("[tls]\ndirectroy = '/x'\n", 2, "directroy", "directory"),
        ("[peers]\nhost-b = 1\n", 2, "host-b", "[peers.host-b]"),
        ("[peers.host-b]\nmay-sent = []\n", 2, "may-sent", "may-send"),
        ("[peers.host-b]\nmay-send = 'web'\n", 2, "may-send", '["web*"]'),
    ],
)
def test_mistakes_are_told_with_line_key_and_remedy(
    text: str, line: int, named: str, advice: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x.toml")
    assert caught.value.message.startswith(f"x.toml, line {line}: ")
    assert named in caught.value.message
    assert advice in caught.value.advice


def test_broken_toml_is_told_with_its_line() -> None:
    with pytest.raises(ConfigError, match="line 2"):
        parse_config("[daemon]\nlisten = \n", "x.toml")


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "host.example", "192.0.2.1"])
def test_everything_but_loopback_is_encrypted_unless_said_otherwise(host: str) -> None:
    text = f'[daemon]\nlisten = "{host}:49400"\n'
    config = parse_config(text, "x.toml")
    assert config.encryption.is_needed(config.listen.host)
    assert not config.encryption.is_needed("127.0.0.1")
    plain = parse_config(text + "plaintext = true\n", "x.toml")
    assert not plain.encryption.is_needed(plain.listen.host)
    forced = parse_config("[tls]\nloopback = true\n", "x.toml")
    assert forced.encryption.is_needed("127.0.0.1")
    assert forced.encryption.is_needed("localhost")


def test_certificates_and_peers_are_read() -> None:
    text = """
[tls]
directory = "/etc/pki/pageferry"
[peers."host-b.example"]
may-send = ["web*", "db"]
[peers."*.backup.example"]
may-receive = ["*"]
"""
    config = parse_config(text, "x.toml")
    assert config.encryption.directory == Path("/etc/pki/pageferry")
    assert config.peers.may_send(["host-b.example"], "web1")
    assert not config.peers.may_send(["host-c.example"], "web1")
    assert config.peers.receivers("web1") == ["*.backup.example"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_config(tmp_path / "none.toml")


LAUNCH = """
[guests.web1]
qmp = "/run/web1.qmp"
launch = ["/usr/bin/qemu", "-S", "-incoming", "defer", "-qmp", "unix:/run/web1.qmp,server=on"]
"""


def test_launch_is_read_with_its_user_and_cgroup() -> None:
    text = LAUNCH + 'launch-user = "root"\nlaunch-cgroup = "/machine.slice/web1"\n'
    launch = parse_config(text, "x.toml").launches["web1"]
    assert launch.command[0] == "/usr/bin/qemu"
    assert (launch.uid, launch.gid) == (0, 0)
    assert launch.cgroup == "/machine.slice/web1"
    assert Launch.from_packet(launch.to_packet()) == launch
    assert parse_config(LAUNCH, "x.toml").launches["web1"].uid is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (LAUNCH.replace('"-S", ', ""), "-S is missing"),
        (LAUNCH.replace('["/usr/bin/qemu"', '["qemu"'), "no absolute path"),
        (LAUNCH.replace('["/usr/bin/qemu"', '[7, "/usr/bin/qemu"'), "list of words"),
        (LAUNCH + 'launch-user = "no-such-user"\n', "no user 'no-such-user'"),
        (LAUNCH + "launch-user = 7\n", "no user 7"),
        (LAUNCH + 'launch-cgroup = "/a/../../b"\n', "no cgroup's name"),
        (LAUNCH + 'launch-cgroup = "web1"\n', "no cgroup's name"),
        ('[guests.web1]\nqmp = "/run/web1.qmp"\nlaunch-user = "root"\n', "there is no launch"),
    ],
)
def test_mistakes_in_launch_are_told(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        parse_config(text, "x.toml")
