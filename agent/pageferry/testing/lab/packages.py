"""QEMU's two generations and a guest kernel, from Debian's own packages.

Debian 12 installs QEMU 7.2. The 10.0 of its backports, and the kernel for Linux guests, are
unpacked into the cache beside it, through an apt configuration of our own: sources copied from
the system's Debian source, with the suite changed. Nothing of the system's apt state is touched,
and apt checks the signatures with the system's keyring as always.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from pageferry.testing.lab.cache import cached

APT_TIMEOUT_S = 300
"""For one apt call: an update fetches about 10 MiB, QEMU about 25 MiB."""

QEMU_NAME = "qemu-system-x86_64"
LIBRARY_FOLDER = "usr/lib/x86_64-linux-gnu"


class PackageError(Exception):
    """A package could not be found, fetched or unpacked; the message says which and why."""


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """One QEMU to run: its program, the arguments and environment it needs to find its files."""

    path: Path
    version: tuple[int, int, int]
    args: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def version_text(self) -> str:
        """The version as QEMU writes it, such as ``10.0.2``."""
        return ".".join(map(str, self.version))

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs this QEMU with these arguments."""
        return [str(self.path), *self.args, *arguments]

    def full_environment(self) -> dict[str, str]:
        """This process's environment with what the QEMU needs added."""
        return {**os.environ, **self.environment}


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A kernel for Linux guests: the bzImage and the folder of its modules."""

    image: Path
    modules: Path
    release: str


@functools.cache
def qemu_7() -> QemuBinary:
    """Debian 12's own QEMU, 7.2: the installed one if it is that, else unpacked."""
    return _installed_qemu(7) or _unpacked_qemu(7, codename())


@functools.cache
def qemu_10() -> QemuBinary:
    """The QEMU 10.0 of Debian 12's backports: the installed one if it is that, else unpacked."""
    return _installed_qemu(10) or _unpacked_qemu(10, f"{codename()}-backports")


@functools.cache
def any_qemu() -> QemuBinary:
    """The installed QEMU, whatever its version; without one, Debian's own, unpacked."""
    return _installed_qemu() or _unpacked_qemu(7, codename())


@functools.cache
def cloud_kernel() -> GuestKernel:
    """Debian's cloud kernel, unpacked."""
    return _unpacked_kernel("cloud-kernel", codename())


@functools.cache
def newer_cloud_kernel() -> GuestKernel:
    """The cloud kernel of Debian's backports, new enough for write tracking; unpacked."""
    return _unpacked_kernel("newer-cloud-kernel", f"{codename()}-backports")


def _unpacked_kernel(name: str, suite: str) -> GuestKernel:
    def make(folder: Path) -> None:
        apt = PrivateApt(folder / "apt")
        depends = apt.run("apt-cache", "depends", "-t", suite, "linux-image-cloud-amd64")
        match = re.search(r"Depends: (linux-image-[0-9]\S*-cloud-amd64)", depends)
        if match is None:
            raise PackageError("linux-image-cloud-amd64 names no kernel: is amd64 this machine's?")
        _unpack(apt.download(match[1]), folder)
        shutil.rmtree(folder / "apt")

    root = cached(f"packages/{name}", make)
    image = next(iter(sorted((root / "boot").glob("vmlinuz-*"))), None)
    if image is None:
        raise PackageError(f"no kernel image in {root}; remove the folder and try again")
    release = image.name.removeprefix("vmlinuz-")
    modules = root / "lib/modules" / release
    if not modules.is_dir():
        modules = root / "usr/lib/modules" / release
    return GuestKernel(image=image, modules=modules, release=release)


@functools.cache
def libvirt() -> Path:
    """Debian 12's libvirtd and virsh with its QEMU driver and the libraries that the system lacks,
    unpacked: a folder with ``usr`` and ``etc``."""

    def make(folder: Path) -> None:
        apt = PrivateApt(folder / "apt")
        archives: list[Path] = []
        for package in ("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients"):
            archives = apt.download_missing(package, codename())
        _unpack(archives, folder / "root")
        shutil.rmtree(folder / "apt")

    return cached("packages/libvirt", make) / "root"


def codename() -> str:
    """The release's name, such as ``bookworm``. PackageError on anything but Debian."""
    values = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )
    if values.get("ID", "").strip('"') != "debian" or "VERSION_CODENAME" not in values:
        raise PackageError("the lab takes QEMU and kernels from Debian's packages: run it there")
    return values["VERSION_CODENAME"].strip('"')


def _installed_qemu(major: int | None = None) -> QemuBinary | None:
    path = shutil.which(QEMU_NAME)
    if path is None:
        return None
    binary = QemuBinary(path=Path(path), version=_version_of([path], dict(os.environ)))
    return binary if major in (None, binary.version[0]) else None


def _version_of(command: list[str], environment: dict[str, str]) -> tuple[int, int, int]:
    text = _run([*command, "--version"], environment=environment)
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise PackageError(f"{command[0]} --version said {text!r}")
    return int(match[1]), int(match[2]), int(match[3])


def _unpacked_qemu(major: int, suite: str) -> QemuBinary:
    def make(folder: Path) -> None:
        with_apt = PrivateApt(folder / "apt")
        archives = with_apt.download_missing("qemu-system-x86", suite)
        _unpack(archives, folder / "root")
        shutil.rmtree(folder / "apt")

    root = cached(f"packages/qemu-{major}", make) / "root"
    path = root / "usr/bin" / QEMU_NAME
    environment = {
        "LD_LIBRARY_PATH": str(root / LIBRARY_FOLDER),
        "QEMU_MODULE_DIR": str(root / LIBRARY_FOLDER / "qemu"),
    }
    version = _version_of([str(path)], {**os.environ, **environment})
    if version[0] != major:
        raise PackageError(f"{suite} has QEMU {version}, not {major}: remove {root.parent}")
    firmware = ("-L", f"{root}/usr/share/seabios", "-L", f"{root}/usr/share/qemu")
    return QemuBinary(path=path, version=version, args=firmware, environment=environment)


def _unpack(archives: list[Path], folder: Path) -> None:
    for archive in archives:
        _run(["dpkg-deb", "-x", str(archive), str(folder)])


class PrivateApt:
    """An apt with a state, a cache and sources of its own in `folder`, updated on creation.

    Its sources are the system's Debian ones and the backports suite of the same archive.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("lists/partial", "archives/partial", "etc/parts"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._write_sources()
        self._write_configuration()
        self.run("apt-get", "update", "-q")

    def run(self, *command: str) -> str:
        """Run an apt program under this configuration; its standard output."""
        configuration = str(self.folder / "etc/apt.conf")
        return _run(list(command), environment={**os.environ, "APT_CONFIG": configuration})

    def download_missing(self, package: str, suite: str) -> list[Path]:
        """Fetch `package` from `suite`, and those of its dependencies that the system lacks."""
        self.run(
            *("apt-get", "install", "-q", "-y", "--download-only", "--no-install-recommends"),
            *("-t", suite, package),
        )
        return self._archives()

    def download(self, package: str) -> list[Path]:
        """Fetch one package alone."""
        version = self.run("apt-cache", "show", "--no-all-versions", package)
        if not version:
            raise PackageError(f"there is no package {package}")
        archives = self.folder / "archives"
        environment = {**os.environ, "APT_CONFIG": str(self.folder / "etc/apt.conf")}
        _run(["apt-get", "download", "-q", package], environment=environment, folder=archives)
        return self._archives()

    def _archives(self) -> list[Path]:
        return sorted((self.folder / "archives").glob("*.deb"))

    def _write_configuration(self) -> None:
        folder = self.folder
        settings = {
            "Dir::State": folder,
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::State::extended_states": folder / "extended_states",
            "Dir::Cache": folder,
            "Dir::Cache::archives": folder / "archives",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": folder / "etc/parts",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Log": folder,
            # The folder may lie where apt's own user cannot go, such as under /root.
            "APT::Sandbox::User": "root",
            # Only the private folders are written; the system's locks are none of our business.
            "Debug::NoLocking": "1",
            "Acquire::Languages": "none",
        }
        lines = [f'{name} "{value}";' for name, value in settings.items()]
        (folder / "etc/apt.conf").write_text("\n".join(lines) + "\n")

    def _write_sources(self) -> None:
        wrote = False
        for path in system_sources():
            text = sources_with_backports(path.read_text(), codename(), deb822=_is_deb822(path))
            if text:
                (self.folder / "etc/parts" / path.name).write_text(text)
                wrote = True
        if not wrote:
            raise PackageError(f"no source of Debian {codename()} in /etc/apt: add one")


def system_sources() -> list[Path]:
    """The files of the system's apt sources, of both formats."""
    parts = Path("/etc/apt/sources.list.d")
    paths = [Path("/etc/apt/sources.list")]
    paths += sorted(path for path in parts.glob("*") if path.suffix in (".list", ".sources"))
    return [path for path in paths if path.is_file()]


def _is_deb822(path: Path) -> bool:
    return path.suffix == ".sources"


def sources_with_backports(text: str, release: str, *, deb822: bool) -> str:
    """The part of an apt sources file that is `release`'s own, with its backports suite added.

    Sources of other suites (third parties', or another release) are left out; empty when none stay.
    """
    if deb822:
        return "\n\n".join(_stanzas_with_backports(text, release))
    return "".join(line + "\n" for line in _lines_with_backports(text, release))


def _stanzas_with_backports(text: str, release: str) -> list[str]:
    kept = []
    for stanza in re.split(r"\n\s*\n", text.strip() + "\n"):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        suites = _field(lines, "Suites").split()
        if not any(suite in (release, f"{release}-security") for suite in suites):
            continue
        if re.search(r"^Enabled:\s*no\s*$", stanza, re.MULTILINE | re.IGNORECASE):
            continue
        if release in suites:
            suites = [suite for suite in suites if suite != f"{release}-backports"]
            suites.append(f"{release}-backports")
        others = [line for line in lines if not re.match("(suites|types):", line, re.IGNORECASE)]
        kept.append("\n".join(["Types: deb", f"Suites: {' '.join(suites)}", *others]) + "\n")
    return kept


def _field(lines: list[str], name: str) -> str:
    for line in lines:
        if line.lower().startswith(f"{name.lower()}:"):
            return line.split(":", 1)[1]
    return ""


def _lines_with_backports(text: str, release: str) -> list[str]:
    kept = []
    for line in text.splitlines():
        match = re.match(r"deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)", line)
        if match is None or match[3] not in (
            *(release, f"{release}-updates", f"{release}-security"),
        ):
            continue
        kept.append(line)
        if match[3] == release:
            kept.append(f"deb {match[1] or ''}{match[2]} {release}-backports {match[4]}")
    return kept


def _run(
    command: list[str], *, environment: dict[str, str] | None = None, folder: Path | None = None
) -> str:
    """Standard output of a command that must succeed. PackageError with what it said otherwise."""
    try:
        done = subprocess.run(
            command,
            env={**(environment or os.environ), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=APT_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip()[-800:]
        raise PackageError(f"{' '.join(command[:3])} failed: {said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(f"{' '.join(command[:3])} failed: {error}") from error
    return done.stdout
