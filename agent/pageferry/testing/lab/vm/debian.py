"""A script run on a Debian of the VM's own, with systemd, as on a host with pageferry installed.

The root is made of Debian's packages by mmdebstrap into an image, which is kept: each VM writes to
a copy of its own that is gone with it. What the VM is given comes as an archive on a disk.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

from pageferry.testing.lab.cache import cached, digest_of_files
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.hosts import scratch_folder
from pageferry.testing.lab.packages import (
    codename,
    newer_cloud_kernel,
    sources_with_backports,
    system_sources,
)
from pageferry.testing.lab.programs import run
from pageferry.testing.lab.vm.image import initramfs
from pageferry.testing.lab.vm.machine import VmResult, disk, power_on, swap_disk

MAKE_TIMEOUT_S = 1800
"""It fetches some 110 MiB and unpacks 330."""

IMAGE_BYTES = 3 << 30
"""Sparse, as is what is written to the VM's copy."""

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps", "iproute2", "mount"),
    *("util-linux", "e2fsprogs", "apparmor", "qemu-system-x86", "python3", "python3-pytest"),
    # What pageferry's package depends on besides.
    *("libssl3", "libzstd1"),
)

USER = "qemu-lab"
"""Whom guests may run as, as libvirt has a user for them."""

FOLDER = "/run/lab"
"""Where the archive is unpacked in the VM."""

LEFT_OUT = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")

UNIT = """\
[Unit]
Description=What this VM is for
After=multi-user.target

[Service]
Type=oneshot
Environment=HOME=/root LANG=C.UTF-8 TERM=dumb
ExecStart=/usr/local/sbin/lab
ExecStopPost=/bin/systemctl --no-block poweroff
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity

[Install]
WantedBy=multi-user.target
"""

PROGRAM = f"""\
#!/bin/sh
mkdir {FOLDER} && tar -x -f /dev/vdc -C {FOLDER} && cd {FOLDER} && sh ./script
printf '\\nVM ENDED status=%d\\n' $?
"""

FSTAB = "/dev/vda / ext4 defaults 0 0\n/dev/vdb none swap discard 0 0\n"


def run_in_debian(script: str, files: Mapping[str, Path], *, timeout_s: float) -> VmResult:
    """Boot, unpack *files* (name: file or folder of this host) in FOLDER, and run *script* there.

    LabError when the VM does not come up or does not end in time, with the last it said.
    """
    root = debian_image()
    with scratch_folder() as scratch:
        archive = scratch / "files.tar"
        _pack(archive, script, files)
        disks = [
            # Written to a copy, which QEMU removes.
            *disk("root", root, "snapshot=on", "cache=unsafe"),
            *swap_disk(scratch),
            *disk("files", archive, "readonly=on"),
        ]
        return power_on(initramfs(newer_cloud_kernel()), disks, scratch, timeout_s, counted=True)


def debian_image() -> Path:
    """The root's image; made into the cache when missing or when its recipe has changed."""
    name = f"vm/debian-{codename()}-{digest_of_files(Path(__file__))}"
    return cached(name, _make_image) / "root.img"


def _make_image(folder: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        raise LabError("the Debian for the VM is made by mmdebstrap: install it")
    root = folder / "root"
    run(
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory"),
        *('--aptopt=APT::Install-Recommends "false"', f"--include={','.join(PACKAGES)}"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
        *(codename(), str(root), *(str(path) for path in _sources(folder))),
        timeout_s=MAKE_TIMEOUT_S,
    )
    _settle(root)
    image = folder / "root.img"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    run("mkfs.ext4", "-q", "-F", "-d", str(root), str(image), timeout_s=MAKE_TIMEOUT_S)
    shutil.rmtree(root)


def _sources(folder: Path) -> list[Path]:
    """This host's own sources of Debian, for mmdebstrap."""
    found = []
    for path in system_sources():
        deb822 = path.suffix == ".sources"
        text = sources_with_backports(path.read_text(), codename(), deb822=deb822)
        if text:
            found.append(folder / path.name)
            found[-1].write_text(text)
    if not found:
        raise LabError(f"no source of Debian {codename()} in /etc/apt: add one")
    return found


def _settle(root: Path) -> None:
    """What makes the root boot quickly, by itself, to the unit that unpacks and runs."""
    (root / "etc/fstab").write_text(FSTAB)
    (root / "etc/hostname").write_text("lab\n")
    (root / "etc/machine-id").write_text("")
    (root / "etc/systemd/system/lab.service").write_text(UNIT)
    (root / "usr/local/sbin/lab").write_text(PROGRAM)
    (root / "usr/local/sbin/lab").chmod(0o755)
    run("chroot", str(root), "useradd", "--system", "--no-create-home", USER)
    enabled = root / "etc/systemd/system/multi-user.target.wants"
    enabled.mkdir(exist_ok=True)
    (enabled / "lab.service").symlink_to("/etc/systemd/system/lab.service")
    for name in ("getty@.service", "serial-getty@.service", "systemd-timesyncd.service"):
        (root / "etc/systemd/system" / name).symlink_to("/dev/null")
    for timer in ("apt-daily", "apt-daily-upgrade", "dpkg-db-backup", "e2scrub_all", "fstrim"):
        (root / f"etc/systemd/system/{timer}.timer").symlink_to("/dev/null")


def _pack(path: Path, script: str, files: Mapping[str, Path]) -> None:
    with tarfile.open(path, "w") as archive:
        head = tarfile.TarInfo("script")
        head.size = len(script.encode())
        archive.addfile(head, io.BytesIO(script.encode()))
        for name, source in files.items():
            archive.add(source, name, filter=_as_root)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in member.name:
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
