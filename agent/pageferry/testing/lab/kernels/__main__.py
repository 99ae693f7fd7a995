"""``python -m pageferry.testing.lab.kernels``: what make kernel-test and make kernel-check call."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pageferry.testing.lab.cleanup import orderly_termination
from pageferry.testing.lab.kernels.applying import (
    PatchError,
    apply_series,
    strangers,
    style_faults,
)
from pageferry.testing.lab.kernels.booting import BootError
from pageferry.testing.lab.kernels.building import BuildError, KernelTree, Variant, kernel_tree
from pageferry.testing.lab.kernels.image import ImageError
from pageferry.testing.lab.kernels.mutants import run_mutants
from pageferry.testing.lab.kernels.record import Result, load, record_faults, save
from pageferry.testing.lab.kernels.report import cost_table, markdown_costs, markdown_results
from pageferry.testing.lab.kernels.running import run_series
from pageferry.testing.lab.kernels.series import Series, all_series, series_named
from pageferry.testing.lab.kernels.sources import SourceGoneError, source_of, touched_files
from pageferry.testing.lab.packages import PackageError

ERRORS = (PackageError, PatchError, BuildError, BootError, ImageError, ValueError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; 0 when all is as it should be."""
    parser = argparse.ArgumentParser(prog="python -m pageferry.testing.lab.kernels")
    parser.add_argument("verb", choices=("test", "check", "mutants", "report"))
    parser.add_argument("--series", action="append", default=[], help="a name such as v6.12")
    parser.add_argument("--variant", action="append", default=[], choices=[*Variant])
    parser.add_argument("--no-cost", action="store_true", help="count no instructions")
    parser.add_argument("--record", action="store_true", help="keep the results in kernel-patches/")
    given = parser.parse_args(arguments)
    names = [name for text in given.series for name in text.split()]
    try:
        chosen = [series_named(name) for name in names] or all_series()
        variants = [Variant(name) for name in given.variant] or list(Variant)
        with orderly_termination():
            faults = [fault for one in chosen for fault in _do(one, variants, given)]
    except ERRORS as error:
        faults = [str(error)]
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _do(series: Series, variants: Sequence[Variant], given: argparse.Namespace) -> list[str]:
    if given.verb == "report":
        result = load(series)
        lines = [*markdown_costs(result), *markdown_results([result])] if result else ["untested"]
        print(series.name, *lines, sep="\n")
        return []
    if given.verb == "check":
        faults = check(series)
        good = "applies, and was tested as it is" if series.booted else "applies; was never booted"
        print(f"{series.name}: {'FAULTY' if faults else good}")
        return faults
    source = source_of(series)
    if not source.pinned:
        print(f"{series.name}: {series.version} is not served any more, taking {source.version}")
    with kernel_tree(series, source) as tree:

        def keep(result: Result) -> None:
            # A record is of the kernel that the series names, and of nothing else.
            if given.record and source.pinned and not result.faults(series):
                save(series, result)

        if given.verb == "mutants":
            return _mutants(tree, keep, again=not given.record)
        try:
            result = run_series(tree, variants, cost=not given.no_cost, say=_say, keep=keep)
        except PatchError as error:
            if source.pinned:
                raise
            return [
                f"{series.name} is for {series.version}, which Debian does not serve any more, and"
                f" has to be carried over to {source.version} (kernel-patches/README.md): {error}"
            ]
    for line in cost_table(result) if result.cost else ():
        print(line)
    return result.faults(series)


def _mutants(tree: KernelTree, keep: Callable[[Result], None], *, again: bool) -> list[str]:
    """Try the wrong variants; *again* even those of which there is a record."""
    series = tree.series
    old = load(series)
    known = old.mutants if old is not None and old.digest == series.digest and not again else {}
    faults = []
    for caught in run_mutants(tree, known, _say):
        result = Result(series.name, series.digest, tree.source.version, "", "", mutants=caught)
        faults += result.faults(series)
        keep(result)
    return faults


def check(series: Series) -> list[str]:
    """Whether a series applies to its kernel, is in its style, and was tested as it is."""
    faults = record_faults(series)
    try:
        folder, source = touched_files(series)
    except SourceGoneError as error:
        # The names of the contents in the patches still show that they fit what was pinned.
        print(f"{series.name}: {error}")
        return faults
    with tempfile.TemporaryDirectory(prefix="pageferry-lab-") as scratch:
        copy = Path(scratch) / "kernel"
        shutil.copytree(folder, copy)
        if source is None or source.pinned:
            foreign = strangers(series, copy)
            faults += [f"{series.name} was not made for this {path}" for path in foreign]
            faults += _apply(series, copy, exact=True)
        else:
            # Its own kernel is not to be had; that the next one differs is worth a word, no more.
            drift = _apply(series, copy, exact=False) or ["it applies to that, too"]
            print(f"{series.name}: Debian has {source.version} now: {'; '.join(drift)}")
        faults += [f"{series.name}: {line}" for line in style_faults(series, folder)]
    return faults


def _apply(series: Series, folder: Path, *, exact: bool) -> list[str]:
    try:
        apply_series(series, folder, exact=exact)
    except PatchError as error:
        return [f"{series.name}: {error}"]
    return []


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
