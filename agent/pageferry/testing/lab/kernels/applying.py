"""Whether a series applies to a kernel, exactly, and is in the kernel's own style."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from pageferry.testing.lab.kernels.series import ZEROS, Series
from pageferry.testing.lab.kernels.sources import blob_name
from pageferry.testing.lab.patience import patient

STYLE_TIMEOUT_S = 600


class PatchError(Exception):
    """A patch does not apply, or is not what it should be; the message says which and why."""


def apply_series(series: Series, folder: Path, *, exact: bool) -> None:
    """Apply all patches to the kernel in *folder*, with no fuzz.

    *exact*: the files must be just those that the patches were made for, and come out as they name
    them; otherwise hunks may have moved. Raises PatchError; then some patches are applied.
    """
    names: dict[str, str] = {}
    for change in series.changes():
        known = names.get(change.path)
        if known is not None and known != change.before:
            raise PatchError(f"{change.patch} is not for {change.path} as the one before leaves it")
        names[change.path] = change.after
    for patch in series.patches:
        apply_patch(patch, folder)
        for change in series.changes():
            if not exact or change.patch != patch.name:
                continue
            if blob_name(folder / change.path) != change.after:
                raise PatchError(f"{patch.name} makes another {change.path} than it names")


def apply_patch(patch: Path, folder: Path) -> None:
    """Apply one patch as git does: never with fuzz. Raises PatchError."""
    # git would take a repository around the folder for the one that the patch is for.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.resolve().parent)}
    done = subprocess.run(
        ["git", "apply", "--whitespace=error-all", str(patch.resolve())],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PatchError(f"{patch.name} does not apply: {done.stderr.strip()}")


def made_for(series: Series) -> dict[str, str]:
    """The files that the patches were made for: git's name of their contents, by path."""
    first: dict[str, str] = {}
    for change in series.changes():
        first.setdefault(change.path, change.before)
    return {path: before for path, before in first.items() if before != ZEROS}


def strangers(series: Series, folder: Path) -> list[str]:
    """Those files in *folder* that are not the ones that the patches were made for."""
    return [path for path, before in made_for(series).items() if blob_name(folder / path) != before]


def style_faults(series: Series, folder: Path) -> list[str]:
    """What the kernel's own checkpatch, in *folder*, has against the patches. --strict."""
    command = ["perl", "scripts/checkpatch.pl", "--strict", "--terse", "--no-tree", "--no-summary"]
    done = subprocess.run(
        [*command, *(str(patch.resolve()) for patch in series.patches)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(STYLE_TIMEOUT_S),
    )
    if done.returncode and not done.stdout.strip():
        raise PatchError(f"checkpatch failed: {done.stderr.strip()[-500:]}")
    return [line for line in done.stdout.splitlines() if line.strip()]
