"""The Linux guest's initramfs: archives, and modules in the order of their needs."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.cpio import END, MAGIC, archive
from pageferry.testing.lab.linux import module_bytes, modules_in_order

HEAD_BYTES = len(MAGIC) + 13 * 8


def entries(data: bytes) -> list[tuple[str, int, bytes]]:
    """Name, mode and contents of each entry of an archive."""
    found = []
    at = 0
    while at < len(data):
        assert data[at : at + len(MAGIC)] == MAGIC
        numbers = [
            int(data[start : start + 8], 16) for start in range(at + len(MAGIC), at + HEAD_BYTES, 8)
        ]
        mode, size, name_bytes = numbers[1], numbers[6], numbers[11]
        name_end = at + HEAD_BYTES + name_bytes
        name = data[at + HEAD_BYTES : name_end - 1].decode()
        contents = (name_end + 3) // 4 * 4
        found.append((name, mode, data[contents : contents + size]))
        at = (contents + size + 3) // 4 * 4
    return found


def test_archive_has_folders_before_files_and_an_end() -> None:
    files = {"init": b"12345", "a/b/c.ko": b"", "a/d": b"x" * 8}
    assert entries(archive(files, executable=frozenset({"init"}))) == [
        ("a", 0o040755, b""),
        ("a/b", 0o040755, b""),
        ("init", 0o100755, b"12345"),
        ("a/b/c.ko", 0o100644, b""),
        ("a/d", 0o100644, b"x" * 8),
        (END, 0, b""),
    ]


def module(folder: Path, name: str, *needs: str) -> None:
    path = folder / "kernel" / f"{name}.ko"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x7fELF\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0")


def test_modules_come_after_those_that_they_need(tmp_path: Path) -> None:
    module(tmp_path, "virtio_blk", "virtio", "virtio-ring")
    module(tmp_path, "virtio", "virtio_ring")
    module(tmp_path, "virtio-ring")
    module(tmp_path, "other")
    names = [path.stem for path in modules_in_order(tmp_path, ["virtio_blk", "virtio"])]
    assert names == ["virtio-ring", "virtio", "virtio_blk"]


def test_packed_modules_are_modules_too(tmp_path: Path) -> None:
    module(tmp_path, "virtio_blk", "virtio-ring")
    plain = tmp_path / "kernel" / "virtio_blk.ko"
    plain.with_suffix(".ko.xz").write_bytes(lzma.compress(plain.read_bytes()))
    plain.unlink()
    module(tmp_path, "virtio-ring")
    order = modules_in_order(tmp_path, ["virtio_blk"])
    assert [path.name for path in order] == ["virtio-ring.ko", "virtio_blk.ko.xz"]
    assert b"depends=virtio-ring" in module_bytes(order[1])


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    module(tmp_path, "virtio_blk", "virtio")
    with pytest.raises(LabError, match=r"no module virtio$"):
        modules_in_order(tmp_path, ["virtio_blk"])
