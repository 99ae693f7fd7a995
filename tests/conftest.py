"""Fixtures that several test folders use, and what the markers ask of the machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from pageferry.testing.lab.cleanup import LabError, orderly_termination
from pageferry.testing.lab.hosts import is_root
from pageferry.testing.lab.packages import PackageError, QemuBinary, qemu_7, qemu_10
from pageferry.testing.lab.swap import SwapArea, some_swap
from tests.support import need

# Property tests count examples, not milliseconds: the machine may be busy.
settings.register_profile("pageferry", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pageferry")

QEMU_GENERATIONS = {"qemu-7.2": qemu_7, "qemu-10.0": qemu_10}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let each marked test run only where its marker's needs are met."""
    if item.get_closest_marker("root") or item.get_closest_marker("swap"):
        need(is_root(), "needs root")
    if item.get_closest_marker("swap"):
        need(shutil.which("swapon", path="/usr/sbin:/sbin:/usr/bin") is not None, "needs swapon")
    if item.get_closest_marker("qemu"):
        need(shutil.which("gcc") is not None, "needs gcc, to build the guest")


@pytest.fixture(scope="session", autouse=True)
def _unwind_on_sigterm() -> Iterator[None]:
    with orderly_termination():
        yield


@pytest.fixture(scope="session")
def host_swap() -> Iterator[SwapArea]:
    """Swap for the whole session: the host's own, or a file that is removed at the end."""
    need(is_root(), "swapping on needs root")
    try:
        area = some_swap()
        with area as found:
            yield found
    except LabError as error:
        need(False, str(error))


@pytest.fixture(params=sorted(QEMU_GENERATIONS), scope="session")
def qemu_binary(request: pytest.FixtureRequest) -> QemuBinary:
    """Each of the two QEMU generations in turn."""
    return generation(request.param)


@pytest.fixture(scope="session")
def newest_qemu() -> QemuBinary:
    """QEMU 10.0, for what does not depend on the generation."""
    return generation("qemu-10.0")


def generation(name: str) -> QemuBinary:
    """One QEMU generation, or a skip that says why it cannot be had."""
    try:
        return QEMU_GENERATIONS[name]()
    except PackageError as error:
        need(False, f"{name}: {error}")
        raise
