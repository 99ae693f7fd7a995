"""Debian's source package of a kernel: linux-source-6.12 and its like, in an exact version.

A package brings the whole kernel in one archive. Checks need a handful of its files, which are
taken out once and kept; builds unpack it whole.

Debian keeps a version only for a while. When the pinned one is gone, the newest of the same package
takes its place, and `Source.pinned` says so: a series may need an update to apply to that.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.cache import cache_folder, cached
from pageferry.testing.lab.kernels.series import Series
from pageferry.testing.lab.packages import (
    PackageError,
    PrivateApt,
    codename,
    system_sources,
)
from pageferry.testing.lab.patience import patient

UNPACK_TIMEOUT_S = 1800

STYLE_FILES = ("scripts/checkpatch.pl", "scripts/spelling.txt", "scripts/const_structs.checkpatch")
"""What checkpatch needs beside the files that are changed."""


class SourceGoneError(PackageError):
    """Debian serves neither the pinned version nor any other of the package any more."""


@dataclass(frozen=True, slots=True)
class Source:
    """A kernel's source archive, on this machine."""

    package: str
    version: str
    archive: Path
    pinned: bool
    """Whether it is the version that the series names, with the checksum that it names."""

    def unpack(self, folder: Path) -> None:
        """Unpack the whole kernel into *folder*, without its top folder."""
        folder.mkdir(parents=True)
        _run("tar", "-xf", str(self.archive), "-C", str(folder), "--strip-components=1")


def source_of(series: Series) -> Source:
    """The archive of the series' kernel, fetched when it is not in the cache.

    Raises SourceGoneError, and PackageError when it cannot be fetched or is not what was pinned.
    """
    pinned = _cached_archive(series.package, series.version)
    if pinned is None:
        versions = offered_versions(series)
        if not versions:
            raise SourceGoneError(
                f"Debian serves no {series.package} any more: retire the series {series.name}"
            )
        if series.version not in versions:
            newest = versions[0]
            archive = _archive(series, newest)
            return Source(series.package, newest, archive, pinned=False)
        pinned = _archive(series, series.version)
    digest = sha256_of(pinned)
    if digest != series.tarball_sha256:
        raise PackageError(
            f"{pinned} has the checksum {digest}, but {series.name} is for {series.tarball_sha256}"
        )
    return Source(series.package, series.version, pinned, pinned=True)


def offered_versions(series: Series) -> list[str]:
    """The versions of the series' package that Debian serves now, newest first."""
    listed = _apt(series.suite).run("apt-cache", "madison", series.package)
    return list(dict.fromkeys(re.findall(r"\|\s*(\S+)\s*\|", listed)))


def touched_files(series: Series) -> tuple[Path, Source | None]:
    """A folder with those files of the kernel that the series changes, and checkpatch.

    The source is None when the folder was in the cache already, made of the pinned version.
    """
    names = sorted({*series.touched, *STYLE_FILES})
    digest = hashlib.sha256("\0".join((series.tarball_sha256, *names)).encode()).hexdigest()[:16]
    entry = f"kernels/touched/{series.name}-{digest}"
    if (cache_folder() / entry).is_dir():
        return cache_folder() / entry, None
    source = source_of(series)
    if not source.pinned:
        entry += f"-{source.version}"
    return cached(entry, lambda folder: _extract(source.archive, names, folder)), source


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blob_name(path: Path) -> str:
    """What git calls these contents."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def sources_of_suite(text: str, release: str, suite: str, *, deb822: bool) -> str:
    """The part of an apt sources file that is *release*'s main archive, for *suite* instead."""
    if not deb822:
        return "".join(
            f"{match[1]}{suite} {match[2]}\n"
            for match in re.finditer(
                rf"^(deb\s+(?:\[[^\]]*\]\s+)?\S+\s+){release}\s+(.*)$", text, re.MULTILINE
            )
        )
    kept = []
    for stanza in re.split(r"\n\s*\n", text.strip()):
        suites = re.search(r"^Suites:(.*)$", stanza, re.MULTILINE | re.IGNORECASE)
        if suites is None or release not in suites[1].split():
            continue
        lines = [
            line
            for line in stanza.splitlines()
            if not re.match("(#|types:|suites:)", line, re.IGNORECASE)
        ]
        kept.append("\n".join(["Types: deb", f"Suites: {suite}", *lines]) + "\n")
    return "\n".join(kept)


@functools.cache
def _apt(suite: str) -> PrivateApt:
    """An apt that knows the release's own suites and *suite*, up to date as of this process."""
    folder = cache_folder() / "kernels" / "apt" / suite
    shutil.rmtree(folder, ignore_errors=True)
    apt = PrivateApt(folder)
    if suite != codename():
        for path in system_sources():
            deb822 = path.suffix == ".sources"
            text = sources_of_suite(path.read_text(), codename(), suite, deb822=deb822)
            if text:
                (folder / "etc/parts" / f"{suite}-{path.name}").write_text(text)
        apt.run("apt-get", "update", "-q")
    return apt


def _cached_archive(package: str, version: str) -> Path | None:
    return next(iter((cache_folder() / _entry(package, version)).glob("*.tar.*")), None)


def _entry(package: str, version: str) -> str:
    return f"kernels/source/{package}_{version}"


def _archive(series: Series, version: str) -> Path:
    def make(folder: Path) -> None:
        apt = _apt(series.suite)
        for old in (apt.folder / "archives").glob("*.deb"):
            old.unlink()
        (package,) = apt.download(f"{series.package}={version}")
        listing = _run("dpkg-deb", "--contents", str(package))
        match = re.search(r"(\./usr/src/(linux-source-\S+\.tar\.\w+))$", listing, re.MULTILINE)
        if match is None:
            raise PackageError(f"{package.name} holds no kernel source")
        _run("dpkg-deb", "--extract", str(package), str(folder))
        (folder / match[1]).rename(folder / match[2])
        shutil.rmtree(folder / "usr")
        package.unlink()

    entry = cached(_entry(series.package, version), make)
    (archive,) = entry.glob("*.tar.*")
    return archive


def _extract(archive: Path, names: Iterable[str], folder: Path) -> None:
    """Those files of a kernel archive into *folder*, under their own names."""
    wanted = set(names)
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            name = member.name.removeprefix("./").partition("/")[2]
            if name not in wanted:
                continue
            wanted.discard(name)
            content = tar.extractfile(member)
            if content is None:
                raise PackageError(f"{name} in {archive.name} is not a file")
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
            path.chmod(member.mode)
            if not wanted:
                return
    raise PackageError(f"{archive.name} lacks {', '.join(sorted(wanted))}")


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=patient(UNPACK_TIMEOUT_S)
        )
    except subprocess.CalledProcessError as error:
        raise PackageError(f"{' '.join(command[:2])} failed: {error.stderr[-800:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(f"{' '.join(command[:2])} failed: {error}") from error
    return done.stdout
