"""The lab's cache: what was fetched or built once and is the same next time.

It lies in the repository (``.cache/``), or, where pageferry is installed from a package, in
``/var/cache/pageferry``, unless ``PAGEFERRY_CACHE`` names another folder. An entry is made in a
folder beside its final name and renamed when complete, so a half-made one is never used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

CACHE_VARIABLE = "PAGEFERRY_CACHE"

INSTALLED_CACHE = Path("/var/cache/pageferry")


def repository() -> Path:
    """The checkout that this package is installed from (editable), with native/ and tests/."""
    return Path(__file__).resolve().parents[4]


def cache_folder() -> Path:
    """The cache's folder, made when missing."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        folder = Path(named).resolve()
    elif (repository() / "pyproject.toml").exists():
        folder = repository() / ".cache"
    else:
        folder = INSTALLED_CACHE
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def cache_lock() -> Iterator[None]:
    """Hold the cache for this process: others that make entries wait. Not re-entrant."""
    with (cache_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The cache entry `name`, a folder; `make` fills an empty one when it is missing.

    When `make` raises, nothing is left behind and the error passes on.
    """
    entry = cache_folder() / name
    if entry.is_dir():
        return entry
    with cache_lock():
        if entry.is_dir():
            return entry
        fresh = entry.with_name(f"{entry.name}.making")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            make(fresh)
            fresh.rename(entry)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    return entry


def digest_of_files(*paths: Path) -> str:
    """A short name for exactly these contents, so that a changed source is built anew."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
