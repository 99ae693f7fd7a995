"""Real migrations between two hosts that trust nobody without a certificate.

The hosts are network namespaces with a cable between them, and their certificates are made by
``pageferry certs``, as an operator would.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pageferry.certificates.authority import HostNames, issue_host, load_authority
from pageferry.testing.lab.carrying import GUEST_NAME
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.daemons import LabDaemon, run_daemon
from pageferry.testing.lab.guests import FreestandingGuest, GuestPlan
from pageferry.testing.lab.networks import LabNetwork, cable, listening_on
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.settled import settled_pair
from tests.migration.conftest import assert_verified, small_plan, tiny_plan
from tests.migration.pairs import traces_in

pytestmark = [pytest.mark.root, pytest.mark.qemu]

MIB = 1024 * 1024

NAMES = ("host-a.example", "host-b.example")


@dataclass(slots=True)
class TwoHosts:
    """Two networks and an authority; `daemons` and a guest come on top."""

    folder: Path
    networks: tuple[LabNetwork, LabNetwork]
    settings: list[str] = field(default_factory=lambda: ["", ""])
    daemon_settings: str = ""

    @property
    def directories(self) -> list[Path]:
        """Where the hosts' certificates are."""
        return [self.folder / name for name in NAMES]

    def certs(self, *arguments: str) -> None:
        """``pageferry certs …``."""
        done = subprocess.run(
            [sys.executable, "-m", "pageferry.cli.main", "certs", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
        )
        assert done.returncode == 0, done.stderr

    @contextlib.contextmanager
    def guest(self, plan: GuestPlan) -> Iterator[tuple[FreestandingGuest, LabDaemon, LabDaemon]]:
        """A guest with its destination, and the daemons on both hosts."""
        tables = [
            f"{self.daemon_settings}[tls]\ndirectory = {json.dumps(str(directory))}\n{settings}"
            for directory, settings in zip(self.directories, self.settings, strict=True)
        ]
        with settled_pair(plan) as guest, contextlib.ExitStack() as stack:
            assert guest.destination is not None
            sockets = (guest.source.qmp_path, guest.destination.qmp_path)
            daemons = [
                stack.enter_context(
                    run_daemon(
                        name,
                        guest.folder / f"daemon-{name}",
                        {GUEST_NAME: qmp},
                        prefix=network.prefix,
                        host=network.address,
                        settings=settings,
                    )
                )
                for name, qmp, network, settings in zip(
                    ("a", "b"), sockets, self.networks, tables, strict=True
                )
            ]
            yield guest, daemons[0], daemons[1]


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    with cable() as networks:
        hosts = TwoHosts(tmp_path, networks)
        hosts.certs("init", "--ca", "ca")
        for name, network in zip(NAMES, networks, strict=True):
            hosts.certs("host", name, "--ip", network.address, "--ca", "ca")
        yield hosts


def assert_untouched(guest: FreestandingGuest) -> None:
    assert guest.source.status() == "running"
    assert traces_in(guest.source).userfaultfds == 0
    assert_verified(guest)


def test_carries_a_swapped_guest_and_nobody_reads_along(
    two_hosts: TwoHosts, host_swap: object, newest_qemu: QemuBinary
) -> None:
    plan = small_plan(newest_qemu)
    with two_hosts.guest(plan) as (guest, here, there):
        before = guest.source.residency()
        with listening_on(two_hosts.networks[0]) as listening:
            result = here.migrate(GUEST_NAME, there, "--verify", "--channels", "2")
            heard = listening.heard()
        assert result.status == 0, (result.reason, here.log(), there.log())
        assert guest.destination is not None
        after = guest.destination.residency()
        assert guest.source.status() == "postmigrate"
        assert abs(after.swapped_bytes - before.swapped_bytes) < 8 * MIB
        assert len(heard) > 32 * MIB
        for word in (b"migration-id", b"hello-reply", b"device-data", GUEST_NAME.encode()):
            assert word not in heard
        assert "host-a.example" in there.log()
        assert_verified(guest)


def test_plaintext_only_by_name(two_hosts: TwoHosts, newest_qemu: QemuBinary) -> None:
    """Also what shows that the test above would hear something."""
    for directory in two_hosts.directories:
        for path in directory.iterdir():
            path.unlink()
    plan = tiny_plan(newest_qemu)
    with pytest.raises(LabError, match=r"ca-cert\.pem is missing"), two_hosts.guest(plan):
        pass
    two_hosts.daemon_settings = "plaintext = true\n"
    with two_hosts.guest(plan) as (guest, here, there):
        with listening_on(two_hosts.networks[0]) as listening:
            result = here.migrate(GUEST_NAME, there)
            heard = listening.heard()
        assert result.status == 0, (result.reason, here.log(), there.log())
        for word in (b"migration-id", b"hello-reply"):
            assert word in heard
        assert_verified(guest)


def test_refusals_touch_nothing_and_say_what_to_do(
    two_hosts: TwoHosts, newest_qemu: QemuBinary
) -> None:
    """One guest, one wrong certificate after the other; in the end it is migrated."""
    a, b = two_hosts.directories
    network = two_hosts.networks[1]
    authority = load_authority(two_hosts.folder / "ca")
    now = datetime.datetime.now(datetime.UTC)
    right = HostNames.of(NAMES[1], [], [network.address])

    with two_hosts.guest(tiny_plan(newest_qemu)) as (guest, here, there):

        def refusal() -> str:
            result = here.migrate(GUEST_NAME, there)
            assert result.status == 3, (result.reason, here.log(), there.log())
            assert result.error["advice"]
            assert_untouched(guest)
            return str(result.error["message"])

        other = HostNames.of("host-c.example", [], ["192.0.2.77"])
        issue_host(authority, other, b, now, days=10, force=True)
        assert f"is not for {network.address}" in refusal()

        long_ago = now - datetime.timedelta(days=30)
        issue_host(authority, right, b, long_ago, days=10, force=True)
        assert "expired on" in refusal()

        issue_host(authority, right, b, now, days=10, force=True)
        issue_host(authority, HostNames.of(NAMES[0], [], []), a, long_ago, days=10, force=True)
        message = refusal()
        assert str(a / "client-cert.pem") in message
        assert "expired on" in message

        issue_host(authority, HostNames.of(NAMES[0], [], []), a, now, days=10, force=True)
        result = here.migrate(GUEST_NAME, there)
        assert result.status == 0, (result.reason, here.log(), there.log())
        assert_verified(guest)


def test_who_may_send_and_receive_which_guests(
    two_hosts: TwoHosts, newest_qemu: QemuBinary
) -> None:
    for here_says, there_says, wanted in (
        ('[peers."host-b.example"]\nmay-receive = ["web*"]\n', "", "may not receive guest guest"),
        ("", '[peers."host-a.example"]\nmay-send = ["web*"]\n', "may not send guest guest"),
        (
            '[peers."*.example"]\nmay-receive = ["gu*"]\n',
            '[peers."host-a.example"]\nmay-send = ["guest"]\n',
            "",
        ),
    ):
        two_hosts.settings = [here_says, there_says]
        with two_hosts.guest(tiny_plan(newest_qemu)) as (guest, here, there):
            result = here.migrate(GUEST_NAME, there)
            if wanted:
                assert result.status == 3
                assert wanted in result.error["message"]
                assert "host-" in result.error["message"]
                assert "[peers]" in result.error["advice"]
                assert_untouched(guest)
            else:
                assert result.status == 0, result.reason
                assert_verified(guest)
