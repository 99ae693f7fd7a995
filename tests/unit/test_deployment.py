"""What is shipped for systemd: units, configuration, and what they say of each other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pageferry.daemon.config import DEFAULT_PATH, Config, parse_config
from pageferry.migration.checkup import PRIVILEGES
from pageferry.testing.lab.cache import repository
from tests.support import need

DEPLOY = repository() / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())
EXAMPLE = DEPLOY / "etc" / DEFAULT_PATH.name

# A key or a table that is commented out, rather than a sentence.
COMMENTED = re.compile(r"^# (\[.*\]|[a-z-]+ = .*)$", re.MULTILINE)


def setting(name: str) -> list[str]:
    text = (DEPLOY / "systemd/pageferryd.service").read_text()
    return [line.split("=", 1)[1] for line in text.splitlines() if line.startswith(f"{name}=")]


def test_systemd_finds_no_fault_with_the_units(tmp_path: Path) -> None:
    need(shutil.which("systemd-analyze") is not None, "needs systemd-analyze of systemd")
    for unit in UNITS:
        # The programs that they start are not installed here.
        text = re.sub(
            r"^(Exec\w+)=/usr/sbin/pageferryd", r"\1=/bin/true", unit.read_text(), flags=re.M
        )
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "pageferryd" in line]
    assert not said, done.stderr
    assert done.returncode == 0, done.stderr


def test_verification_is_not_blind(tmp_path: Path) -> None:
    need(shutil.which("systemd-analyze") is not None, "needs systemd-analyze of systemd")
    unit = tmp_path / "pageferryd-broken.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nSystemCallFilter=~no_such_call\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "pageferryd-broken" in done.stderr


def test_unit_has_the_capabilities_that_the_doctor_asks_for() -> None:
    (bounding_set,) = setting("CapabilityBoundingSet")
    assert set(bounding_set.split()) == set(PRIVILEGES)


def test_unit_keeps_workers_over_a_restart() -> None:
    assert setting("Type") == ["notify"]
    assert setting("KillMode") == ["process"]
    assert int(setting("FileDescriptorStoreMax")[0]) > 0


@pytest.mark.parametrize(
    "name", ["PrivateUsers", "ProcSubset", "PrivateNetwork", "PrivatePIDs", "PrivateIPC"]
)
def test_unit_hides_no_qemu(name: str) -> None:
    assert setting(name) == []


def test_example_changes_nothing() -> None:
    assert parse_config(EXAMPLE.read_text(), str(EXAMPLE)) == Config()


def test_each_line_of_the_example_is_right_once_it_counts() -> None:
    text = COMMENTED.sub(r"\1", EXAMPLE.read_text())
    # Groups are looked up: the one that the package makes is not on this machine.
    text = text.replace('read-only-group = "pageferry"', 'read-only-group = "root"')
    found = parse_config(text, str(EXAMPLE))
    assert set(found.guests) == {"web1"}
    assert found.listen.host == "0.0.0.0"
    assert found.metrics_listen is not None
    assert found.guest_sockets is not None
