"""The doctor's word on encryption."""

from __future__ import annotations

from pathlib import Path

from pageferry.daemon.config import Config
from pageferry.daemon.doctor import check_tls
from pageferry.model.verdict import Check, Verdict
from pageferry.net.address import Address
from tests.support.pki import Pki

EVERYWHERE = Address("0.0.0.0")


def checks(config: Config) -> dict[str, Check]:
    return {check.name: check for check in check_tls(config)}


def test_good_certificates_are_named_with_their_end(tmp_path: Path) -> None:
    directory = Pki.make(tmp_path).host("host-a.example")
    found = checks(Config(listen=EVERYWHERE, tls_directory=directory))
    assert {check.verdict for check in found.values()} == {Verdict.OK}
    assert "host-a.example" in found["server-cert.pem"].found
    assert "ca-cert.pem" in found


def test_certificates_about_to_end_degrade_and_ended_ones_block(tmp_path: Path) -> None:
    pki = Pki.make(tmp_path)
    soon = checks(Config(listen=EVERYWHERE, tls_directory=pki.host("soon.example", days=5)))
    assert soon["server-cert.pem"].verdict is Verdict.DEGRADED
    assert soon["server-cert.pem"].fix
    ended = checks(Config(listen=EVERYWHERE, tls_directory=pki.expired("ended.example")))
    assert ended["server-cert.pem"].verdict is Verdict.BLOCKED


def test_missing_certificates_block_only_whoever_needs_them(tmp_path: Path) -> None:
    found = checks(Config(listen=EVERYWHERE, tls_directory=tmp_path))
    assert found["server-cert.pem"].verdict is Verdict.BLOCKED
    found = checks(Config(tls_directory=tmp_path))
    assert found["server-cert.pem"].verdict is Verdict.DEGRADED


def test_plaintext_is_told() -> None:
    (found,) = check_tls(Config(plaintext=True))
    assert found.verdict is Verdict.DEGRADED
