"""Build the Debian package: `make deb`, or `build.py FOLDER`, which prints the package's path.

Run with the Python of the checkout's virtual environment. What was tested is what is packaged: the
package has the extensions that are built in place, and the libraries of that environment, in a
private one of its own whose interpreter is the system's. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import compileall
import functools
import gzip
import hashlib
import importlib.metadata
import os
import py_compile
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pageferry
from pageferry.cli.completion_cmd import script
from pageferry.cli.main import make_parser
from pageferry.testing.lab.guest import freestanding_image

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DEBIAN = DEPLOY / "debian"

SYSTEM_PYTHON = "/usr/bin/python3"

PRIVATE = "usr/lib/pageferry"

LAUNCHERS = {
    "usr/bin/pageferry": "pageferry.cli.main",
    "usr/sbin/pageferryd": "pageferry.daemon.main",
}

# -I: neither variables, nor the user's own packages, nor the working folder have a say.
LAUNCHER = """\
#!/{private}/bin/python3 -I
import sys

from {module} import main

sys.exit(main())
"""

DOCUMENTS = ("README.md", "docs/*.md")

SOURCES = ("*.c", "*.h", "*.S", "*.ld", "*.pyc", "__pycache__")
"""Left out of the package: the demo's guest comes built, the rest of the laboratory needs a
checkout."""

LEFT_OUT = {"..", "tests", "_tests"}
"""Of libraries: what lies outside of site-packages, and their own tests."""

SCRIPTS = ("postinst", "prerm", "postrm")


class BuildError(Exception):
    """The package cannot be built; the message says why."""


def main() -> int:
    """Build into the folder that is named, and print the package's path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    try:
        print(build(folder))
    except BuildError as error:
        print(f"the package cannot be built: {error}", file=sys.stderr)
        return 1
    return 0


def build(folder: Path) -> Path:
    """Build the package in *folder* and return its path. Raises BuildError."""
    check_interpreter()
    stage = folder / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    stage.chmod(0o755)
    copy_libraries(stage)
    copy_agent(stage)
    compile_modules(stage)
    make_environment(stage)
    make_launchers(stage)
    copy_deployment(stage)
    copy_documents(stage)
    make_control(stage)
    set_modes(stage)
    package = folder / f"pageferry_{pageferry.__version__}_amd64.deb"
    run(
        *("dpkg-deb", "--root-owner-group", "--build", str(stage), str(package)),
        SOURCE_DATE_EPOCH=str(commit_time()),
    )
    shutil.rmtree(stage)
    return package


def check_interpreter() -> None:
    """The system's Python must load what was built for this one."""
    if sysconfig.get_platform() != "linux-x86_64":
        raise BuildError(f"it is for amd64 only, and this is {sysconfig.get_platform()}")
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    theirs = run(SYSTEM_PYTHON, "-c", ask).strip()
    if theirs != python_version():
        raise BuildError(
            f"the virtual environment has Python {python_version()} and {SYSTEM_PYTHON} is"
            f" {theirs}: remove .venv and make it with PYTHON3={SYSTEM_PYTHON}"
        )


def python_version() -> str:
    """As in ``3.11``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def site_packages(stage: Path) -> Path:
    """Where the package's own modules and libraries lie."""
    return stage / PRIVATE / "lib" / f"python{python_version()}" / "site-packages"


def libraries() -> list[importlib.metadata.Distribution]:
    """What pageferry needs to run, and what that needs in turn, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}

    def add(name: str) -> None:
        distribution = importlib.metadata.distribution(name)
        key = re.sub(r"[-_.]+", "-", distribution.name).lower()
        if key in found:
            return
        found[key] = distribution
        for requirement in needed_by(distribution):
            add(requirement)

    add("pageferry")
    del found["pageferry"]
    return [found[key] for key in sorted(found)]


def needed_by(distribution: importlib.metadata.Distribution) -> Iterator[str]:
    """The names of what a distribution requires here and without extras."""
    from packaging.requirements import Requirement  # a dependency of pytest's

    for text in distribution.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def copy_libraries(stage: Path) -> None:
    """The files of each library, but for its programs."""
    for library in libraries():
        base = Path(str(library.locate_file("")))
        for name in library.files or []:
            if LEFT_OUT & set(name.parts) or name.suffix == ".pyc":
                continue
            target = site_packages(stage) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / name, target)


def copy_agent(stage: Path) -> None:
    """pageferry itself, with its extensions, and the demo's guest."""
    source = Path(pageferry.__file__).parent
    target = site_packages(stage) / "pageferry"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*SOURCES))
    for extension in ("kernel/_native.abi3.so", "net/_tls.abi3.so"):
        if not (target / extension).exists():
            raise BuildError(f"{extension} is not built: run make native")
        run("strip", "--strip-unneeded", str(target / extension))
        drop_search_path(target / extension)
    shutil.copyfile(freestanding_image(), target / "testing/lab/guest/guest.elf")


def compile_modules(stage: Path) -> None:
    """Compile all modules into the package, as they lie when installed.

    Compiling takes longer than all else that installing does, and the package is for one version of
    Python in any case. dpkg gives files the times that they have here, by which Python tells that
    they are current; a module that an operator changes is compiled anew.
    """
    modules = site_packages(stage)
    made_s = commit_time()
    for path in modules.rglob("*.py"):
        os.utime(path, (made_s, made_s))
    done = compileall.compile_dir(
        modules,
        maxlevels=100,
        quiet=2,
        stripdir=str(stage),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP,
    )
    if not done:
        raise BuildError("a module does not compile: python -m compileall says which")


DT_NULL, DT_RPATH, DT_RUNPATH, PT_DYNAMIC = 0, 15, 29, 2


def drop_search_path(path: Path) -> None:
    """Make an extension look for libraries in the system's places only.

    A Python that was built with a search path of its own, such as in someone's home, gives it to
    the extensions that it builds. elf(5), of 64 bits.
    """
    image = bytearray(path.read_bytes())
    (headers,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    for number in range(count):
        kind, _flags, offset, *_, length = struct.unpack_from(
            "<IIQQQQ", image, headers + number * size
        )
        if kind != PT_DYNAMIC:
            continue
        entries = list(struct.iter_unpack("<QQ", image[offset : offset + length]))
        kept = [entry for entry in entries if entry[0] not in (DT_RPATH, DT_RUNPATH)]
        kept += [(DT_NULL, 0)] * (len(entries) - len(kept))
        image[offset : offset + length] = b"".join(struct.pack("<QQ", *entry) for entry in kept)
    path.write_bytes(image)


def make_environment(stage: Path) -> None:
    """What makes the folder a virtual environment: pyvenv.cfg, and the system's interpreter."""
    private = stage / PRIVATE
    (private / "bin").mkdir()
    (private / "bin/python3").symlink_to(f"../../../bin/python{python_version()}")
    (private / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python_version()}\n"
    )


def make_launchers(stage: Path) -> None:
    """The two commands."""
    for name, module in LAUNCHERS.items():
        path = stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LAUNCHER.format(private=PRIVATE, module=module))
        path.chmod(0o755)


def copy_deployment(stage: Path) -> None:
    """Units, configuration, completions, manual pages, the dashboard."""
    for pattern, target in (
        ("systemd/*", "usr/lib/systemd/system"),
        ("sysusers.d/*", "usr/lib/sysusers.d"),
        ("tmpfiles.d/*", "usr/lib/tmpfiles.d"),
        ("etc/*", "etc/pageferry"),
        ("grafana/*", "usr/share/pageferry/grafana"),
        ("apparmor/*", "usr/share/pageferry/apparmor"),
    ):
        for source in sorted(DEPLOY.glob(pattern)):
            put(stage / target / source.name, source.read_bytes())
    for page in sorted((DEPLOY / "man").iterdir()):
        put(stage / f"usr/share/man/man{page.suffix[1:]}" / f"{page.name}.gz", packed(page))
    for shell, where in (
        ("bash", "bash-completion/completions/pageferry"),
        ("zsh", "zsh/vendor-completions/_pageferry"),
    ):
        put(stage / "usr/share" / where, script(make_parser(), shell).encode())


def copy_documents(stage: Path) -> None:
    """The documentation, the changelog, and under what terms everything is."""
    folder = stage / "usr/share/doc/pageferry"
    for pattern in DOCUMENTS:
        for source in sorted(ROOT.glob(pattern)):
            put(folder / source.name, source.read_bytes())
    overrides = stage / "usr/share/lintian/overrides/pageferry"
    put(overrides, (DEBIAN / "lintian-overrides").read_bytes())
    changelog = filled((DEBIAN / "changelog").read_text(), stage)
    put(folder / "changelog.gz", gzip.compress(changelog.encode(), 9, mtime=0))
    put(folder / "copyright", terms().encode())


def terms() -> str:
    """pageferry's licence, and each library's name, version and licence, and where its text is."""
    lines = [
        f"pageferry {pageferry.__version__}: Apache-2.0 (/usr/share/common-licenses/Apache-2.0)",
        "Copyright: the authors of pageferry",
        "",
        f"Libraries in /{PRIVATE}, each with its licence beside its modules, in *.dist-info:",
        "",
    ]
    for library in libraries():
        metadata = library.metadata
        name = metadata["License-Expression"] or metadata["License"] or "see there"
        lines.append(f"{library.name} {library.version}: {name.splitlines()[0]}")
    return "\n".join(lines) + "\n"


def make_control(stage: Path) -> None:
    """The package's metadata and maintainer scripts."""
    folder = stage / "DEBIAN"
    folder.mkdir()
    (folder / "control").write_text(filled((DEBIAN / "control").read_text(), stage))
    (folder / "conffiles").write_text("/etc/pageferry/pageferryd.toml\n")
    sums = [
        f"{checksum(path)}  {path.relative_to(stage)}"
        for path in files(stage)
        if path.relative_to(stage).parts[0] not in ("DEBIAN", "etc")
    ]
    (folder / "md5sums").write_text("\n".join(sums) + "\n")
    for name in SCRIPTS:
        shutil.copyfile(DEBIAN / name, folder / name)
        (folder / name).chmod(0o755)


def checksum(path: Path) -> str:
    """As dpkg --verify wants it."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def filled(text: str, stage: Path) -> str:
    """A template with its values."""
    major, minor = sys.version_info[:2]
    size_kib = sum(path.stat().st_size for path in files(stage)) // 1024
    values = {
        "VERSION": pageferry.__version__,
        "SIZE": str(size_kib),
        "PYTHON": f"{major}.{minor}",
        "NEXT": f"{major}.{minor + 1}",
        "DATE": formatdate(commit_time()),
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


@functools.cache
def commit_time() -> int:
    """When the checkout's last commit was made, so that a build can be repeated."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given or run("git", "-C", str(ROOT), "log", "-1", "--format=%ct"))


def files(stage: Path) -> list[Path]:
    """All regular files in it, by name."""
    return sorted(path for path in stage.rglob("*") if path.is_file() and not path.is_symlink())


def set_modes(stage: Path) -> None:
    """Everybody may read; what is a program stays one."""
    for path in stage.rglob("*"):
        if path.is_symlink():
            continue
        program = path.is_dir() or path.parent.name in ("bin", "sbin") or path.name in SCRIPTS
        path.chmod(0o755 if program else 0o644)


def put(path: Path, contents: bytes) -> None:
    """Write a file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)


def packed(path: Path) -> bytes:
    """A file's contents, as policy wants manual pages: with gzip, and the same each time."""
    return gzip.compress(path.read_bytes(), 9, mtime=0)


def run(*command: str, **variables: str) -> str:
    """Standard output of a command. Raises BuildError with what it complained of."""
    try:
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C", **variables},
        )
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{command[0]}: {error.stderr.strip()}") from error
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
