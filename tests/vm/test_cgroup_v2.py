"""Under cgroup version 2 alone, in a VM: charges of a real migration, and what the host tests show.

The VM runs this checkout's own tests, by name, with everything required of it. One boot for all.
"""

from __future__ import annotations

import compileall
import re
import sys

import pytest

from pageferry.testing.lab.cache import repository
from pageferry.testing.lab.hosts import is_root
from pageferry.testing.lab.packages import PackageError
from pageferry.testing.lab.patience import PATIENCE_VARIABLE
from pageferry.testing.lab.vm import VmResult, run_in_vm
from tests.support import REQUIRE_ALL_VARIABLE, need

VM_TIMEOUT_S = 900
"""The whole takes some four minutes under TCG on an idle host."""

pytestmark = [
    pytest.mark.root,
    pytest.mark.qemu,
    pytest.mark.slow,
    pytest.mark.timeout(VM_TIMEOUT_S + 60),
]

CHARGING = "tests/vm/charging.py"
TESTS = (
    "tests/host/test_cgroup.py::test_received_pages_are_charged_to_the_cgroup_that_was_joined",
    f"{CHARGING}::test_destination_and_page_ins_are_charged_to_the_qemus",
    f"{CHARGING}::test_threads_in_cgroups_as_libvirt_has_them",
)


@pytest.fixture(scope="module")
def vm() -> VmResult:
    """What the tests said in the VM."""
    need(is_root(), "sharing all of this host's files with a VM needs root")
    command = [
        *(sys.executable, "-m", "pytest", "-rA", "--color=no", "--tb=short"),
        *("-p", "no:cacheprovider", *TESTS),
    ]
    environment = {
        PATIENCE_VARIABLE: "6",
        REQUIRE_ALL_VARIABLE: "1",
        "TERM": "dumb",
        # What is written there is shmem, and would be charged to the agent that writes it.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for name in ("agent", "tests"):
        compileall.compile_dir(repository() / name, quiet=2)
    try:
        return run_in_vm(
            command, folder=repository(), environment=environment, timeout_s=VM_TIMEOUT_S
        )
    except PackageError as error:
        need(False, f"no kernel or QEMU for the VM: {error}")
        raise


@pytest.mark.parametrize("name", TESTS, ids=lambda name: name.rpartition("::")[2])
def test_passes_in_the_vm(vm: VmResult, name: str) -> None:
    assert f"PASSED {name}" in vm.output.splitlines(), vm.output


def test_all_of_them_ran(vm: VmResult) -> None:
    figures = re.findall(r"^FIGURES .*$", vm.output, re.MULTILINE)
    print(f"{vm.seconds:.0f} s with the VM's own start", *figures, sep="\n")
    assert vm.status == 0, vm.output
    assert re.search(rf"= {len(TESTS)} passed in ", vm.output), vm.output
