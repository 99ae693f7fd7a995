"""Each reason against carrying a guest names the thing and what to do about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pageferry.model.errors import RefusedError
from pageferry.qemu.look import GuestBlock, GuestView
from pageferry.qemu.refusals import (
    DIRECT_DRIVERS,
    DIRECT_WRITERS,
    NEEDED_CAPABILITIES,
    STATE_ADVICE,
    reasons_against,
)

BLOCK = GuestBlock(
    name="ram0",
    length_bytes=1 << 30,
    page_bytes=4096,
    backend_id="ram0",
    backend_type="memory-backend-file",
    shared=True,
    mem_path="/dev/shm/guest",
    host_address=0x7F0000000000,
)

GUEST = GuestView(
    version=(10, 0, 2),
    name="guest",
    status="running",
    machine_type="pc-q35-10.0",
    blocks=(BLOCK,),
    migration_status="none",
    blocked_reasons=(),
    capabilities=frozenset(NEEDED_CAPABILITIES) | {"multifd"},
    device_types=frozenset({"virtio-blk-pci", "virtio-net-pci", "virtio-balloon-pci"}),
    block_drivers=frozenset({"file", "qcow2", "host_device"}),
    jobs=(),
    vcpu_threads=(1234,),
)

WAITING = replace(GUEST, status="inmigrate")


def only_reason(view: GuestView) -> RefusedError:
    (reason,) = reasons_against(view, "source")
    assert reason.advice
    assert reason.guest_state == "untouched"
    return reason


def with_block(**changes: object) -> GuestView:
    return replace(GUEST, blocks=(replace(BLOCK, **changes),))  # type: ignore[arg-type]


def test_an_ordinary_guest_is_carried() -> None:
    assert reasons_against(GUEST, "source") == []
    assert reasons_against(replace(GUEST, status="paused"), "source") == []
    assert reasons_against(WAITING, "destination") == []


@pytest.mark.parametrize("prefix", sorted(DIRECT_WRITERS))
def test_devices_that_write_memory_unseen(prefix: str) -> None:
    device = f"{prefix}pci"
    view = replace(GUEST, device_types=GUEST.device_types | {device})
    reason = only_reason(view)
    assert device in reason.message
    assert "device_del" in reason.advice


@pytest.mark.parametrize("driver", sorted(DIRECT_DRIVERS))
def test_block_drivers_that_map_memory(driver: str) -> None:
    reason = only_reason(replace(GUEST, block_drivers=frozenset({driver})))
    assert driver in reason.message


@pytest.mark.parametrize("status", sorted(STATE_ADVICE))
def test_states_that_cannot_migrate(status: str) -> None:
    reason = only_reason(replace(GUEST, status=status))
    assert status in reason.message


def test_a_state_nobody_has_heard_of() -> None:
    assert "hibernated" in only_reason(replace(GUEST, status="hibernated")).message


@pytest.mark.parametrize("status", ["setup", "active", "pre-switchover", "device", "cancelling"])
def test_a_migration_of_qemus_own(status: str) -> None:
    assert status in only_reason(replace(GUEST, migration_status=status)).message


def test_private_memory_names_the_option_to_use() -> None:
    reason = only_reason(with_block(shared=False))
    assert "share=on" in reason.advice
    anonymous = only_reason(with_block(backend_type="memory-backend-ram"))
    assert "memory-backend-ram" in anonymous.message
    assert "memory-backend-file,id=ram0" in anonymous.advice


def test_hugetlb() -> None:
    assert "hugetlb" in only_reason(with_block(page_bytes=2 << 20)).message


@pytest.mark.parametrize(
    ("version", "carried"),
    [((7, 2, 22), True), ((8, 0, 9), True), ((8, 1, 0), False), ((10, 0, 2), False)],
)
def test_a_memfd_is_carried_by_the_qemus_that_leave_it_out(
    version: tuple[int, int, int], carried: bool
) -> None:
    view = replace(with_block(backend_type="memory-backend-memfd"), version=version)
    reasons = reasons_against(view, "source")
    assert (reasons == []) is carried
    if not carried:
        assert "mem-path=/dev/shm/" in reasons[0].advice


def test_no_memory_backend_at_all() -> None:
    assert "memory-backend-file" in only_reason(replace(GUEST, blocks=())).advice


def test_a_qemu_without_the_capabilities() -> None:
    reason = only_reason(replace(GUEST, capabilities=frozenset({"events"})))
    assert "x-ignore-shared" in reason.message


def test_what_qemu_itself_says_against_it() -> None:
    assert "a 9p mount" in only_reason(replace(GUEST, blocked_reasons=("a 9p mount",))).message
    assert "mirror job0" in only_reason(replace(GUEST, jobs=("mirror job0",))).message


def test_a_destination_must_be_waiting() -> None:
    (reason,) = reasons_against(GUEST, "destination")
    assert "-incoming defer -S" in reason.advice
    (used,) = reasons_against(replace(WAITING, migration_status="active"), "destination")
    assert "active" in used.message


def test_all_reasons_are_told_at_once() -> None:
    view = replace(
        with_block(shared=False),
        device_types=frozenset({"vfio-pci"}),
        blocked_reasons=("why not",),
    )
    assert len(reasons_against(view, "source")) == 3
