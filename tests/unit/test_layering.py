"""Lower packages never import upper ones, and the pure ones have no effects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pageferry

ROOT = Path(pageferry.__file__).parent

MAY_IMPORT: dict[str, set[str]] = {
    "model": set(),
    "policy": {"model"},
    "wire": {"model"},
    "kernel": {"model"},
    "qemu": {"model"},
    "certificates": {"model"},
    "net": {"model", "wire", "certificates"},
    "migration": {"model", "policy", "wire", "kernel", "qemu", "certificates", "net"},
    "control": {"model"},
    "daemon": {
        *("model", "policy", "wire", "kernel", "qemu", "certificates", "net"),
        *("migration", "control"),
    },
    "cli": {"model", "control", "certificates"},
    # Written from the code, and imported by nothing.
    "reference": {"model", "net", "certificates", "control", "daemon", "cli"},
    # Shipped fakes and the laboratory drive the product from outside.
    "testing": {
        *("model", "policy", "wire", "kernel", "qemu", "certificates", "net"),
        *("migration", "control", "daemon", "cli"),
    },
}
"""Packages that the modules of each package may import, beside their own."""

FAULTS = "pageferry.testing.faults"
"""What alone of `testing` the layers with effects may import: it imports nothing of ours but the
phases."""

EFFECTS = {
    *("trio", "trio_asyncio", "asyncio", "threading", "subprocess", "multiprocessing"),
    *("socket", "select", "selectors", "ssl", "os", "io", "pathlib", "shutil", "tempfile"),
    *("time", "datetime", "random", "secrets", "signal", "mmap", "fcntl", "qemu", "cffi"),
}
PURE = {"model", "policy", "wire"}

ONLY_USERS = {
    "qemu": {"qemu"},
    "asyncio": {"qemu"},
    "trio_asyncio": {"qemu"},
    "cffi": {"kernel"},
    "msgpack": {"wire"},
    "cryptography": {"certificates"},
    "pageferry.kernel._native": {"kernel"},
    "pageferry.net._tls": {"net"},
}
"""Packages of ours that alone may import a foreign module."""


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def package_of(path: Path) -> str | None:
    """The first package under pageferry that *path* is in; None for pageferry's own modules."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else None


def imports_of(path: Path) -> Iterator[str]:
    """Absolute dotted names that the module imports, also within functions."""
    package = ("pageferry", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*base, *([node.module] if node.module else [])))
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def is_laboratory(path: Path) -> bool:
    return package_of(path) == "testing"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    package = package_of(path)
    if package is None:
        return
    for name in imports_of(path):
        if is_within(name, FAULTS) and package not in PURE:
            continue
        parts = name.split(".")
        if parts[0] == "pageferry" and len(parts) > 1 and (ROOT / parts[1]).is_dir():
            assert parts[1] in MAY_IMPORT[package] | {package}, f"{package} imports {name}"
        if package in PURE:
            assert parts[0] not in EFFECTS, f"{package} is pure, and imports {name}"
        for module, users in ONLY_USERS.items():
            if is_within(name, module) and not is_laboratory(path):
                assert package in users, f"{package} imports {name}, only {users} may"


def test_faults_import_nothing_of_ours_but_the_model() -> None:
    names = set(imports_of(ROOT / "testing/faults.py"))
    ours = {name for name in names if name.startswith("pageferry")}
    assert not {name for name in ours if not is_within(name, "pageferry.model")}


def test_every_package_has_a_layer() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(MAY_IMPORT)


def test_layers_have_no_cycle() -> None:
    seen: set[str] = set()
    waiting = {package: set(lower) for package, lower in MAY_IMPORT.items()}
    while waiting:
        free = {package for package, lower in waiting.items() if lower <= seen}
        assert free, f"cycle among {sorted(waiting)}"
        seen |= free
        waiting = {p: lower for p, lower in waiting.items() if p not in free}


def test_imports_within_functions_and_relative_ones_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "model").mkdir()
    module = tmp_path / "model" / "x.py"
    module.write_text("from ..net import data\ndef f():\n    import os.path\n    from . import y\n")
    assert set(imports_of(module)) >= {"pageferry.net", "pageferry.net.data", "os.path"}
    assert "pageferry.model.y" in set(imports_of(module))


PURE_BENCH = {"order", "statistics", "results", "tables"}
"""Modules of the bench that decide and lay out, and touch nothing."""


def test_laboratory_does_not_know_the_bench() -> None:
    for path in (ROOT / "testing" / "lab").rglob("*.py"):
        for name in imports_of(path):
            assert not is_within(name, "pageferry.testing.bench"), f"{path} imports {name}"


def test_bench_keeps_figures_apart_from_measuring() -> None:
    bench = ROOT / "testing" / "bench"
    for module in PURE_BENCH:
        for name in imports_of(bench / f"{module}.py"):
            assert name.split(".")[0] not in EFFECTS, f"{module} is pure, and imports {name}"
    measuring = {path.stem for path in bench.rglob("*.py")} - PURE_BENCH - {"scenarios", "__init__"}
    for module in PURE_BENCH:
        for name in imports_of(bench / f"{module}.py"):
            last = name.removeprefix("pageferry.testing.bench.").split(".")[0]
            assert last not in measuring, f"{module} is pure, and imports {name}"
