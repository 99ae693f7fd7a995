"""Packed pages between real QEMUs: fewer bytes on the wire, every page right."""

from __future__ import annotations

import pytest

from pageferry.testing.lab.packages import QemuBinary
from tests.migration.conftest import MakePair, assert_verified, small_plan
from tests.migration.pairs import Pair

pytestmark = [pytest.mark.root, pytest.mark.swap, pytest.mark.qemu]


def test_every_page_survives_being_packed(
    host_swap: object, make_pair: MakePair, newest_qemu: QemuBinary
) -> None:
    pair: Pair = make_pair(small_plan(newest_qemu, repeat=8))
    before = pair.source.residency()
    result = pair.migrate("--verify", "--compression", "on", "--compression-level", "3")
    assert result.status == 0, result.reason
    packed = result.final_info["compression"]
    ram = result.final_info["ram"]
    assert packed["pages"] > 0
    assert packed["compression-rate"] > 2
    assert ram["transferred"] < 0.6 * ram["normal-bytes"]
    # Cold pages stay cold, packed or not.
    after = pair.destination.residency()
    assert after.swapped_bytes > 0.9 * before.swapped_bytes
    assert_verified(pair.guest)


def test_noise_is_sent_as_it_is(
    host_swap: object, make_pair: MakePair, newest_qemu: QemuBinary
) -> None:
    pair: Pair = make_pair(small_plan(newest_qemu))
    result = pair.migrate("--verify", "--compression", "auto")
    assert result.status == 0, result.reason
    ram = result.final_info["ram"]
    assert ram["transferred"] > 0.85 * ram["normal-bytes"]
    assert_verified(pair.guest)
