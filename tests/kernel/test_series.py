"""Every series applies to its kernel, is in the kernel's style, and was tested as it is now."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from pageferry.testing.lab.kernels.__main__ import check
from pageferry.testing.lab.kernels.applying import PatchError, apply_series, made_for, strangers
from pageferry.testing.lab.kernels.building import Variant
from pageferry.testing.lab.kernels.mutants import all_mutants
from pageferry.testing.lab.kernels.record import load, record_faults
from pageferry.testing.lab.kernels.report import markdown_costs, markdown_results
from pageferry.testing.lab.kernels.series import ZEROS, Series, all_series, patches_folder
from pageferry.testing.lab.kernels.sources import SourceGoneError, touched_files
from pageferry.testing.lab.packages import PackageError
from tests.support import need

BOOTED = pytest.mark.parametrize(
    "series", [one for one in all_series() if one.booted], ids=lambda series: series.name
)
EACH = pytest.mark.parametrize("series", all_series(), ids=lambda series: series.name)


def kernel_files(series: Series) -> Path:
    """The files of its kernel that the series changes, or a skip that says why not.

    That Debian no longer has the kernel is no fault of this machine: it never fails a test.
    """
    need(shutil.which("perl") is not None, "needs perl, for checkpatch")
    try:
        folder, source = touched_files(series)
    except SourceGoneError as error:
        pytest.skip(str(error))
    except PackageError as error:
        need(False, str(error))
        raise
    if source is not None and not source.pinned:
        pytest.skip(f"Debian has {source.version} in the place of {series.version}")
    return folder


@EACH
def test_series_applies_and_was_tested_as_it_is(series: Series) -> None:
    assert check(series) == []


@EACH
def test_series_is_a_chain_from_its_kernel_on(series: Series) -> None:
    """By git's names of the contents, so it holds when Debian no longer has this kernel."""
    names: dict[str, str] = {}
    for change in series.changes():
        assert len(change.before) == len(change.after) == len(ZEROS), "format-patch --full-index"
        assert names.setdefault(change.path, change.before) == change.before
        names[change.path] = change.after
    assert {"mm/shmem.c", "fs/proc/task_mmu.c", "Documentation/admin-guide/mm/pagemap.rst"} <= {
        *made_for(series)
    }
    assert f"{series.selftests}/pagemap_shmem_swap.c" in names


def test_readme_says_what_was_not_seen() -> None:
    text = (patches_folder() / "README.md").read_text(encoding="utf-8")
    for series in all_series():
        assert (f"{series.name} was never booted" in text) is not series.booted
        unchecked = f"{series.name} was not booted with the kernel's own checks"
        assert (unchecked in text) is not series.debug


@BOOTED
def test_record_tells_the_worth_of_the_patches(series: Series) -> None:
    result = load(series)
    assert result is not None
    patched, unpatched = (
        result.checks[variant.value]["pagemap_shmem_swap"]
        for variant in (Variant.PATCHED, Variant.UNPATCHED)
    )
    assert len(unpatched.failed) > 10
    assert patched.passed > unpatched.passed
    swapped = "read shmem swapped,no-page-tables"
    anonymous = ("read anonymous present", "read anonymous swapped", "read anonymous hole")
    before, after = result.cost["unpatched"], result.cost["patched"]
    assert after[swapped] < after["mincore+lseek shmem swapped,no-page-tables"]
    assert all(after[state] < 1.05 * before[state] for state in anonymous)
    hole = "read shmem hole"
    assert after[hole] < 1.1 * before[hole]


def test_readme_has_the_figures_of_the_records() -> None:
    text = (patches_folder() / "README.md").read_text(encoding="utf-8")
    results = [result for series in all_series() if (result := load(series))]
    (newest_measured,) = (result for result in results if result.series == "v6.12")
    for line in (*markdown_costs(newest_measured), *markdown_results(results)):
        assert line in text, "print it with `python -m pageferry.testing.lab.kernels report`"
    for series in all_series():
        assert series.version in text
    assert f"holds {len(all_mutants())} mistakes" in text


@EACH
def test_another_kernel_and_a_changed_patch_are_noticed(series: Series, tmp_path: Path) -> None:
    copy = tmp_path / "kernel"
    shutil.copytree(kernel_files(series), copy)
    assert strangers(series, copy) == []
    patches = []
    for patch in series.patches:
        text = patch.read_text(encoding="utf-8")
        (tmp_path / patch.name).write_text(
            text.replace("walk->last = last;", "walk->last = first;")
        )
        patches.append(tmp_path / patch.name)
    changed = dataclasses.replace(series, patches=tuple(patches), booted=True)
    assert changed.digest != series.digest
    faults = record_faults(changed)
    assert any("has changed since" in fault or "never tested" in fault for fault in faults)
    with pytest.raises(PatchError, match=r"makes another mm/shmem\.c than it names"):
        apply_series(changed, copy, exact=True)


@EACH
def test_nothing_is_applied_with_fuzz(series: Series, tmp_path: Path) -> None:
    copy = tmp_path / "kernel"
    shutil.copytree(kernel_files(series), copy)
    text = (copy / "mm/shmem.c").read_text(encoding="utf-8")
    near = "\n/*\n * SysV IPC SHM_UNLOCK restore Unevictable pages"
    assert text.count(near) == 1
    (copy / "mm/shmem.c").write_text(text.replace(near, "\n/* A word more. */" + near))
    assert strangers(series, copy) == ["mm/shmem.c"]
    with pytest.raises(PatchError, match="does not apply"):
        apply_series(series, copy, exact=False)


def test_wrong_variants_have_their_place_and_were_caught(tmp_path: Path) -> None:
    (series,) = (one for one in all_series() if one.name == "v6.12")
    copy = tmp_path / "kernel"
    shutil.copytree(kernel_files(series), copy)
    apply_series(series, copy, exact=False)
    result = load(series)
    assert result is not None
    for mutant in all_mutants():
        path = copy / mutant.file
        assert mutant.applied(path.read_text(encoding="utf-8"))
    assert {*result.mutants} == {mutant.name for mutant in all_mutants()}
    assert all(result.mutants.values())


def test_patches_are_found_from_any_folder() -> None:
    before = Path.cwd()
    os.chdir("/")
    try:
        assert [series.name for series in all_series()] == ["v6.1", "v6.12", "v7.2"]
    finally:
        os.chdir(before)
