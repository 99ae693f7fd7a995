"""Two hosts, each with a daemon that is not started yet and a QEMU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.recovery.bench import daemon, qemu
from tests.recovery.hosts import Hosts
from tests.support import need


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    need(shutil.which("qemu-system-x86_64") is not None, "needs qemu-system-x86_64")
    with ExitStack() as stack:
        source = stack.enter_context(daemon(tmp_path / "a"))
        destination = stack.enter_context(daemon(tmp_path / "b"))
        for each in (source, destination):
            each.folder.mkdir()
        yield Hosts(
            source,
            destination,
            stack.enter_context(qemu(tmp_path / "a" / "qmp")),
            stack.enter_context(qemu(tmp_path / "b" / "qmp")),
        )
