"""Real swap, RAM files and tracked processes for the tests that ask the kernel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.hosts import is_root, ram_file
from pageferry.testing.lab.swap import SwapArea, some_swap
from tests.host.tracked import TrackedProcess, tracked_process
from tests.support import need

SWAP_BYTES = 512 << 20


@pytest.fixture
def root() -> None:
    """Skips unless the test runs as root."""
    need(is_root(), "needs root: ptrace, swap and cgroups are not for everyone")


@pytest.fixture(scope="session")
def _session_swap() -> Iterator[SwapArea | str]:
    with contextlib.ExitStack() as stack:
        try:
            area: SwapArea | str = stack.enter_context(some_swap(SWAP_BYTES))
        except LabError as error:
            area = str(error)
        yield area


@pytest.fixture
def swap(root: None, _session_swap: SwapArea | str) -> SwapArea:
    """Some swap, the host's or a file of the tests' own."""
    need(not isinstance(_session_swap, str), f"no swap: {_session_swap}")
    assert isinstance(_session_swap, SwapArea)
    return _session_swap


@pytest.fixture
def ram_path() -> Iterator[Path]:
    """A name in /dev/shm."""
    with ram_file("host-test") as path:
        yield path


@pytest.fixture
def ram_fd(ram_path: Path) -> Iterator[int]:
    """A new, empty RAM file."""
    fd = os.open(ram_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    yield fd
    os.close(fd)


@pytest.fixture
def track(root: None, ram_path: Path) -> Iterator[Callable[[int], TrackedProcess]]:
    """Starts a process that maps the RAM file, of the given number of pages."""
    with contextlib.ExitStack() as stack:
        yield lambda pages: stack.enter_context(tracked_process(ram_path, pages))
