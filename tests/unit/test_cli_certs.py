"""`pageferry certs`: what an operator starts with."""

from __future__ import annotations

import datetime
import json
import stat
from pathlib import Path

import pytest

from pageferry.certificates.authority import AuthorityError, HostNames
from pageferry.certificates.description import describe_pem
from pageferry.certificates.files import Side
from pageferry.certificates.inspection import inspect_directory
from pageferry.cli.exit_codes import ExitCode
from pageferry.cli.main import main
from tests.support.pki import context

FILES = {
    *("ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem"),
}


def certs(*arguments: object) -> int:
    return main(["certs", *map(str, arguments)])


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    assert certs("init", "--ca", tmp_path / "ca") == ExitCode.COMPLETED
    return tmp_path / "ca"


def test_from_nothing_to_certificates_that_work(
    authority: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--dns", "alias.example", "--ip", "192.0.2.7", "--ip", "2001:db8::7")
    assert certs("host", "host-a.example", *options, "--ca", authority, "--output", out) == 0
    assert {path.name for path in out.iterdir()} == FILES
    for path in (*out.iterdir(), *authority.iterdir()):
        wanted = 0o600 if path.name.endswith("-key.pem") else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    for side in Side:
        own = context(out, side).own
        assert own.names == (
            "host-a.example",
            "alias.example",
            "192.0.2.7",
            "2001:db8::7",
        )
    told = capsys.readouterr().out
    assert "scp -p" in told
    assert f"{out}/*.pem root@host-a.example:/etc/pageferry/tls/" in told
    assert "(secret)" in told


def test_files_are_told_to_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ca, out = tmp_path / "ca", tmp_path / "out"
    assert certs("init", "--ca", ca, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {Path(name) for name in told["files"]} == set(ca.iterdir())
    assert certs("host", "192.0.2.7", "--ca", ca, "--output", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {Path(name).name for name in told["files"]} == FILES
    assert (told["dns"], told["ip"]) == ([], ["192.0.2.7"])
    assert certs("host", "192.0.2.7", "--ca", ca, "--output", out, "--json") == ExitCode.REFUSED
    assert json.loads(capsys.readouterr().out)["error"]["advice"]


def test_nothing_is_overwritten_without_force(
    authority: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in authority.iterdir()}
    assert certs("init", "--ca", authority) == ExitCode.REFUSED
    assert "would be overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in authority.iterdir()} == before
    out = tmp_path / "out"
    out.mkdir()
    (out / "client-key.pem").write_text("mine")
    assert certs("host", "a.example", "--ca", authority, "--output", out) == ExitCode.REFUSED
    assert [path.name for path in out.iterdir()] == ["client-key.pem"]
    assert certs("host", "a.example", "--ca", authority, "--output", out, "--force") == 0
    assert {path.name for path in out.iterdir()} == FILES


def test_host_without_an_authority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certs("host", "a.example", "--ca", tmp_path / "none") == ExitCode.REFUSED
    told = capsys.readouterr().err
    assert "there is no authority" in told
    assert "pageferry certs init" in told


@pytest.mark.parametrize("name", ["-x", "a b", "*", "a/../b", "ä.example", "a" * 65, ""])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(AuthorityError):
        HostNames.of(name, [], [])


def test_addresses_that_are_none() -> None:
    with pytest.raises(AuthorityError, match="no IP address"):
        HostNames.of("a", [], ["192.0.2"])
    assert HostNames.of("192.0.2.7", [], []).addresses == ("192.0.2.7",)
    assert HostNames.of("192.0.2.7", [], []).dns == ()


def test_certificates_end_with_their_authority(tmp_path: Path) -> None:
    assert certs("init", "--ca", tmp_path / "ca", "--days", 10) == 0
    out = tmp_path / "out"
    assert certs("host", "a.example", "--ca", tmp_path / "ca", "--output", out) == 0
    ends = [
        describe_pem((out / name).read_bytes())[0].not_after
        for name in ("ca-cert.pem", "server-cert.pem")
    ]
    assert ends[1] <= ends[0]


def test_show_tells_how_long_they_last(
    authority: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert certs("host", "a.example", "--ca", authority, "--output", out, "--days", 7) == 0
    capsys.readouterr()
    assert certs("show", out, "--json") == 0
    found = {Path(each["file"]).name: each for each in json.loads(capsys.readouterr().out)}
    assert found["ca-cert.pem"]["degree"] == "good"
    assert found["server-cert.pem"]["degree"] == "expires"
    assert found["client-cert.pem"]["names"] == ["a.example"]
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=8)
    degrees = {each.path.name: each.degree for each in inspect_directory(out, later)}
    assert degrees == {"ca-cert.pem": "good", "server-cert.pem": "bad", "client-cert.pem": "bad"}
    (out / "client-key.pem").chmod(0o644)
    (out / "server-key.pem").write_bytes((authority / "ca-key.pem").read_bytes())
    assert certs("show", out) == ExitCode.FAILED
    told = capsys.readouterr().out
    assert "it is not the key of server-cert.pem" in told
    assert "can be read or changed by others" in told
    assert certs("show", tmp_path / "none") == ExitCode.FAILED
    assert "is missing" in capsys.readouterr().out
