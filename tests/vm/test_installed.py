"""The Debian package, installed on a Debian of a VM's own with systemd, and tried in its sandbox.

The VM runs ``installed/checks.py`` in one boot, with the system's Python, Debian's pytest and the
modules of the installed package.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pageferry.testing.lab.cache import repository
from pageferry.testing.lab.hosts import is_root
from pageferry.testing.lab.packages import PackageError
from pageferry.testing.lab.patience import PATIENCE_VARIABLE
from pageferry.testing.lab.vm.debian import debian_image, run_in_debian
from pageferry.testing.lab.vm.machine import VmResult
from tests.support import need

PATIENCE = 8

VM_TIMEOUT_S = 5400
"""Of it most is spent waiting for a turn when the host is busy."""

SLOW = f"[Service]\\nTimeoutStartSec={90 * PATIENCE}\\n"
"""All that differs from the shipped unit; systemd's 90 s are for machines that are not emulated."""

pytestmark = [
    pytest.mark.root,
    pytest.mark.qemu,
    pytest.mark.slow,
    pytest.mark.timeout(VM_TIMEOUT_S + 600),
]

CHECKS = Path("tests/vm/installed/checks.py")
NAMES = re.findall(r"^def (test_\w+)", (repository() / CHECKS).read_text(), re.MULTILINE)

SCRIPT = f"""\
export {PATIENCE_VARIABLE}={PATIENCE}
# The guests' processors never rest: they get what others leave, in whichever session they are.
sysctl -q kernel.sched_autogroup_enabled=0
# What is written here is gone with the VM.
echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/lab
mkdir -p /etc/systemd/system/pageferryd.service.d
printf '{SLOW}' >/etc/systemd/system/pageferryd.service.d/00-slow.conf
dpkg -i pageferry.deb >install.log 2>&1 || {{ cat install.log; exit 1; }}
export PYTHONPATH=$(echo /usr/lib/pageferry/lib/python3.*/site-packages) PYTHONDONTWRITEBYTECODE=1
# The checks are this checkout's, and their modules lie beside the package's own.
printf '[pytest]\\n' >pytest.ini
exec python3 -m pytest -c pytest.ini -vrA --durations=0 --color=no --tb=short \\
    -p no:cacheprovider {CHECKS}
"""


@pytest.fixture(scope="module")
def package() -> Path:
    done = subprocess.run(
        [
            sys.executable,
            str(repository() / "deploy/debian/build.py"),
            str(repository() / "build/deb"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def vm(package: Path) -> VmResult:
    """What the checks said in the VM."""
    need(is_root(), "making a Debian for a VM needs root")
    files = {"pageferry.deb": package, "tests/vm/installed": repository() / CHECKS.parent}
    files |= {
        f"{name}/__init__.py": repository() / name / "__init__.py" for name in ("tests", "tests/vm")
    }
    try:
        debian_image()
        return run_in_debian(SCRIPT, files, timeout_s=VM_TIMEOUT_S)
    except PackageError as error:
        need(False, f"no kernel or QEMU for the VM: {error}")
        raise


@pytest.mark.parametrize("name", NAMES)
def test_passes_in_the_vm(vm: VmResult, name: str) -> None:
    passed = re.findall(rf"^PASSED \S+::{name}(?:\[.*\])?$", vm.output, re.MULTILINE)
    assert passed, vm.output
    assert not re.search(rf"^(FAILED|ERROR) \S+::{name}\b", vm.output, re.MULTILINE), vm.output


def test_all_of_them_ran(vm: VmResult) -> None:
    figures = re.findall(r"^FIGURES .*$", vm.output, re.MULTILINE)
    print(f"{vm.seconds:.0f} s with the VM's own start", *figures, sep="\n")
    assert vm.status == 0, vm.output
