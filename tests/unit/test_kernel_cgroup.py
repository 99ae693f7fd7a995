"""Finding a memory cgroup and its limits, on made-up trees of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.kernel.cgroup import MemoryCgroup, memory_cgroup_of
from pageferry.model.errors import KernelFeatureError

PID = 42
V1_NO_LIMIT = "9223372036854771712\n"


def make_proc(folder: Path, cgroup: str, mountinfo: str) -> Path:
    proc = folder / "proc"
    (proc / str(PID)).mkdir(parents=True)
    (proc / str(PID) / "cgroup").write_text(cgroup)
    (proc / "self").mkdir()
    (proc / "self" / "mountinfo").write_text(mountinfo)
    return proc


def v1_mount(mount: Path, root: str = "/") -> str:
    return f"35 31 0:32 {root} {mount} rw,relatime shared:9 - cgroup cgroup rw,memory\n"


def v2_mount(mount: Path, root: str = "/") -> str:
    return f"41 31 0:38 {root} {mount} rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"


def put(folder: Path, **values: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(value)


def test_version_1_beside_an_empty_unified_hierarchy(tmp_path: Path) -> None:
    mount = tmp_path / "memory"
    group = mount / "guests" / "a"
    put(mount, memory__limit_in_bytes=V1_NO_LIMIT, memory__usage_in_bytes="5000")
    put(mount / "guests", memory__limit_in_bytes="4000", memory__usage_in_bytes="3900")
    put(group, memory__limit_in_bytes="2000", memory__usage_in_bytes="500")
    put(group, memory__stat="cache 12\nrss 34\n")
    proc = make_proc(
        tmp_path,
        "4:memory:/guests/a\n1:cpu:/\n0::/unified\n",
        v2_mount(tmp_path / "unified") + v1_mount(mount),
    )
    found = memory_cgroup_of(PID, proc)
    assert found == MemoryCgroup(1, group, mount)
    assert (found.usage_bytes(), found.limit_bytes()) == (500, 2000)
    # The parent's limit is higher but nearer.
    assert found.headroom_bytes() == 100
    assert found.stat() == {"cache": 12, "rss": 34}


def test_version_1_without_any_limit(tmp_path: Path) -> None:
    mount = tmp_path / "memory"
    put(mount, memory__limit_in_bytes=V1_NO_LIMIT, memory__usage_in_bytes="5000")
    proc = make_proc(tmp_path, "4:cpu,memory:/\n", v1_mount(mount))
    found = memory_cgroup_of(PID, proc)
    assert found.path == mount
    assert found.limit_bytes() is None
    assert found.headroom_bytes() is None


def test_version_2_takes_the_lower_of_high_and_max(tmp_path: Path) -> None:
    mount = tmp_path / "cgroup"
    group = mount / "machine.slice" / "qemu.scope"
    put(mount)  # the root has no limits at all
    put(group.parent, memory__max="max\n", memory__high="max\n", memory__current="800")
    put(group, memory__max="1000\n", memory__high="900\n", memory__current="950")
    proc = make_proc(tmp_path, "0::/machine.slice/qemu.scope\n", v2_mount(mount))
    found = memory_cgroup_of(PID, proc)
    assert found == MemoryCgroup(2, group, mount)
    assert found.limit_bytes() == 900
    assert found.headroom_bytes() == 0


def test_limit_of_zero_is_a_limit(tmp_path: Path) -> None:
    mount = tmp_path / "memory"
    put(mount, memory__limit_in_bytes="0\n", memory__usage_in_bytes="0")
    found = memory_cgroup_of(PID, make_proc(tmp_path, "4:memory:/\n", v1_mount(mount)))
    assert found.limit_bytes() == 0


def test_mount_of_a_part_of_the_hierarchy(tmp_path: Path) -> None:
    mount = tmp_path / "with blank"
    put(mount / "b", memory__limit_in_bytes="7\n", memory__usage_in_bytes="0")
    put(mount, memory__limit_in_bytes="9\n", memory__usage_in_bytes="0")
    escaped = Path(str(mount).replace(" ", "\\040"))
    proc = make_proc(tmp_path, "4:memory:/a/b\n", v1_mount(escaped, "/a"))
    found = memory_cgroup_of(PID, proc)
    assert found.path == mount / "b"
    assert found.limit_bytes() == 7


def test_cgroup_outside_of_what_is_mounted(tmp_path: Path) -> None:
    proc = make_proc(tmp_path, "4:memory:/elsewhere\n", v1_mount(tmp_path, "/a"))
    with pytest.raises(KernelFeatureError, match="/elsewhere"):
        memory_cgroup_of(PID, proc)


def test_kernel_without_memory_cgroups(tmp_path: Path) -> None:
    with pytest.raises(KernelFeatureError, match="no memory cgroups"):
        memory_cgroup_of(PID, make_proc(tmp_path, "1:cpu:/\n", ""))


def test_join_that_is_not_permitted_says_where(tmp_path: Path) -> None:
    group = MemoryCgroup(1, tmp_path / "missing", tmp_path)
    with pytest.raises(KernelFeatureError, match="missing"):
        group.join(PID)


def test_threads_in_cgroups_of_their_own_are_charged_to_the_domain(tmp_path: Path) -> None:
    """As libvirt does it on version 2: the process is in …/libvirt/emulator."""
    mount = tmp_path / "cgroup"
    scope = mount / "machine.slice" / "qemu.scope"
    put(scope, cgroup__type="domain\n", memory__max="max\n", memory__current="70")
    put(scope / "libvirt", cgroup__type="domain threaded\n", memory__current="60")
    put(scope / "libvirt", memory__max="100\n")
    put(scope / "libvirt" / "emulator", cgroup__type="threaded\n")
    name = "0::/machine.slice/qemu.scope/libvirt/emulator\n"
    found = memory_cgroup_of(PID, make_proc(tmp_path, name, v2_mount(mount)))
    assert found.path == scope / "libvirt"
    assert (found.usage_bytes(), found.headroom_bytes()) == (60, 40)


def test_version_2_without_the_controller_counts_in_the_ancestor_that_has_it(
    tmp_path: Path,
) -> None:
    mount = tmp_path / "cgroup"
    put(mount / "guests", memory__max="1000\n", memory__current="400")
    put(mount / "guests" / "a", cgroup__type="domain\n")
    found = memory_cgroup_of(PID, make_proc(tmp_path, "0::/guests/a\n", v2_mount(mount)))
    assert found.path == mount / "guests" / "a"
    assert (found.usage_bytes(), found.limit_bytes(), found.headroom_bytes()) == (400, 1000, 600)


def test_swap_limit_of_version_1_is_what_both_leave_beyond_memory(tmp_path: Path) -> None:
    group = tmp_path / "a"
    put(tmp_path, memory__limit_in_bytes=V1_NO_LIMIT, memory__memsw__limit_in_bytes=V1_NO_LIMIT)
    put(group, memory__limit_in_bytes="2000")
    found = MemoryCgroup(1, group, tmp_path)
    # Swap is not counted here, so it has no limit.
    assert found.swap_limit_bytes() is None
    put(group, memory__memsw__limit_in_bytes="5000")
    assert found.swap_limit_bytes() == 3000
    put(group, memory__memsw__limit_in_bytes="2000")
    assert found.swap_limit_bytes() == 0


def test_swap_limit_of_version_2_is_the_lowest_above_it(tmp_path: Path) -> None:
    group = tmp_path / "machine" / "a"
    put(group, memory__swap__max="max\n")
    found = MemoryCgroup(2, group, tmp_path)
    assert found.swap_limit_bytes() is None
    put(tmp_path / "machine", memory__swap__max="0\n")
    assert found.swap_limit_bytes() == 0
