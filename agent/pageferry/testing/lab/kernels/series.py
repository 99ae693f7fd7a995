"""The patch series in kernel-patches/, as series.toml describes them."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pageferry.testing.lab.cache import repository

ZEROS = "0" * 40

NO_CODE = ("Documentation/", "MAINTAINERS", "tools/")
"""What a kernel is not built of."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series: the kernel that it is for, exactly, and its patches in order."""

    name: str
    kernels: str
    package: str
    version: str
    suite: str
    tarball_sha256: str
    selftests: str
    """Folder of the memory management selftests in this kernel."""
    has_scan: bool
    """Whether this kernel has PAGEMAP_SCAN."""
    booted: bool
    """Whether it was built and booted: then there must be a record of that."""
    debug: bool
    """Whether its record must include a run with the kernel's own checks."""
    leaves_out: frozenset[str]
    """Options of the test configuration that this kernel is built without."""
    adds: frozenset[str]
    """Options that this kernel is built with besides."""
    patches: tuple[Path, ...]

    @property
    def digest(self) -> str:
        """Names exactly these patches for exactly this kernel."""
        digest = hashlib.sha256()
        for pin in (self.package, self.version, self.tarball_sha256):
            digest.update(pin.encode() + b"\0")
        for patch in self.patches:
            digest.update(patch.name.encode() + b"\0" + patch.read_bytes())
        return digest.hexdigest()

    @property
    def code_digest(self) -> str:
        """Names the code that the patches make: the same when only their words change."""
        return self._digest_of(lambda path: not path.startswith(NO_CODE))

    @property
    def selftest_digest(self) -> str:
        """Names the selftests that the patches make."""
        return self._digest_of(lambda path: path.startswith(self.selftests))

    def _digest_of(self, counts: Callable[[str], bool]) -> str:
        last = {change.path: change.after for change in self.changes() if counts(change.path)}
        return hashlib.sha256("\n".join(map(str, sorted(last.items()))).encode()).hexdigest()

    @property
    def touched(self) -> tuple[str, ...]:
        """Files of the kernel that the patches change; not those that they add."""
        added: set[str] = set()
        changed: dict[str, None] = {}
        for change in self.changes():
            if change.before == ZEROS:
                added.add(change.path)
            elif change.path not in added:
                changed[change.path] = None
        return tuple(changed)

    def changes(self) -> list[Change]:
        """What each patch does to each file, in order."""
        return [change for patch in self.patches for change in _changes(patch)]


@dataclass(frozen=True, slots=True)
class Change:
    """One patch's change of one file: git's names of the contents before and after."""

    patch: str
    path: str
    before: str
    after: str


def patches_folder() -> Path:
    """kernel-patches/ of this checkout."""
    return repository() / "kernel-patches"


def all_series() -> list[Series]:
    """Every series that series.toml names, in its order. ValueError when a folder has none."""
    text = (patches_folder() / "series.toml").read_text(encoding="utf-8")
    return [_series(entry) for entry in tomllib.loads(text)["series"]]


def series_named(name: str) -> Series:
    """The one of that name. ValueError when there is none."""
    found = {series.name: series for series in all_series()}
    if name not in found:
        raise ValueError(f"there is no series {name!r}, only {', '.join(found)}")
    return found[name]


def _series(entry: dict[str, object]) -> Series:
    name = str(entry["name"])
    patches = tuple(sorted((patches_folder() / name).glob("[0-9]*.patch")))
    if not patches:
        raise ValueError(f"kernel-patches/{name} holds no patch")
    return Series(
        name=name,
        kernels=str(entry["kernels"]),
        package=str(entry["package"]),
        version=str(entry["version"]),
        suite=str(entry["suite"]),
        tarball_sha256=str(entry["tarball_sha256"]),
        selftests=str(entry["selftests"]),
        has_scan=bool(entry["has_scan"]),
        booted=bool(entry["booted"]),
        debug=bool(entry["debug"]),
        leaves_out=frozenset(map(str, _list(entry["leaves_out"]))),
        adds=frozenset(map(str, _list(entry.get("adds", [])))),
        patches=patches,
    )


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"series.toml has {value!r} where a list belongs")
    return value


def _changes(patch: Path) -> list[Change]:
    found = re.findall(
        r"^diff --git a/(\S+) b/\S+\n(?:(?:new|old|deleted)[^\n]*\n)*"
        r"index ([0-9a-f]+)\.\.([0-9a-f]+)",
        patch.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return [Change(patch.name, path, before, after) for path, before, after in found]
