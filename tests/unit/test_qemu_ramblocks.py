"""What QEMU's human monitor says about RAM, as recorded from 7.2.22 and 10.0.2."""

from __future__ import annotations

import pytest

from pageferry.model.errors import QemuError
from pageferry.qemu.ramblocks import (
    RamBlockLine,
    guest_address_of,
    parse_gpa2hva,
    parse_ramblocks,
)

MIB = 1 << 20

RAMBLOCK_7_2 = """\
              Block Name    PSize              Offset               Used              Total
                    ram0    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000
   0000:00:01.0/vga.vram    4 KiB  0x0000000004080000 0x0000000001000000 0x0000000001000000
    /rom@etc/acpi/tables    4 KiB  0x00000000050c0000 0x0000000000020000 0x0000000000200000
                 pc.bios    4 KiB  0x0000000004000000 0x0000000000040000 0x0000000000040000
"""

RAMBLOCK_10_0 = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                    ram0    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007fe7d7fff000  rw
   0000:00:01.0/vga.vram    4 KiB  0x0000000004080000 0x0000000001000000 0x0000000001000000 0x00007fe7d5c00000  rw
    /rom@etc/acpi/tables    4 KiB  0x00000000050c0000 0x0000000000020000 0x0000000000200000 0x00007fe7d5800000  ro
                 pc.bios    4 KiB  0x0000000004000000 0x0000000000040000 0x0000000000040000 0x00007fe7e0600000  ro
"""  # noqa: E501 - recorded

MTREE = """\
FlatView #0
 AS "memory", root: system
 Root memory region: system
  00000000000c0000-00000000000c9fff (prio 0, rom): ram0 @00000000000c0000
  00000000000ca000-00000000000ccfff (prio 0, ram): ram0 @00000000000ca000
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram

FlatView #1
  No rendered FlatView
"""


def test_rows_of_7_2_have_no_host_address() -> None:
    rows = parse_ramblocks(RAMBLOCK_7_2)
    assert rows[0] == RamBlockLine("ram0", 4096, 64 * MIB, None)
    assert [row.name for row in rows] == [
        "ram0",
        "0000:00:01.0/vga.vram",
        "/rom@etc/acpi/tables",
        "pc.bios",
    ]
    assert rows[2].used_bytes == 0x20000


def test_rows_of_10_0_have_one() -> None:
    rows = parse_ramblocks(RAMBLOCK_10_0)
    assert rows[0] == RamBlockLine("ram0", 4096, 64 * MIB, 0x7FE7D7FFF000)
    assert rows[3].host_address == 0x7FE7E0600000


def test_huge_pages_are_told_from_small_ones() -> None:
    row = "   ram0    2 MiB  0x0000000000000000 0x0000000004000000 0x0000000004000000"
    text = RAMBLOCK_7_2.splitlines()[0] + "\n" + row
    assert parse_ramblocks(text)[0].page_bytes == 2 * MIB


def test_memory_that_no_guest_uses_has_no_name() -> None:
    row = "            4 KiB  0x0000000000000000 0x0000000000001000 0x0000000000001000"
    text = RAMBLOCK_7_2.splitlines()[0] + "\n" + row
    assert parse_ramblocks(text)[0].name == ""


@pytest.mark.parametrize("text", ["", "unknown command: 'info ramblock'"])
def test_another_answer_is_an_error_that_quotes_it(text: str) -> None:
    with pytest.raises(QemuError, match="not understood"):
        parse_ramblocks(text)


def test_a_row_that_is_not_understood_is_an_error() -> None:
    with pytest.raises(QemuError, match="ram0 of something"):
        parse_ramblocks(RAMBLOCK_7_2 + "ram0 of something\n")


def test_the_first_guest_address_of_a_block_and_its_offset() -> None:
    assert guest_address_of(MTREE, "ram0") == (0xC0000, 0xC0000)
    assert guest_address_of(MTREE, "pc.bios") == (0xFFFC0000, 0)
    assert guest_address_of(MTREE, "ram1") is None


def test_a_host_address_is_believed_only_of_the_right_block() -> None:
    text = "Host virtual address for 0xc0000 (ram0) is 0x7ffa240bf000\n"
    assert parse_gpa2hva(text, "ram0") == 0x7FFA240BF000
    with pytest.raises(QemuError, match="gpa2hva"):
        parse_gpa2hva(text, "ram1")
    with pytest.raises(QemuError, match="No memory"):
        parse_gpa2hva("No memory is mapped at address 0x0", "ram0")
