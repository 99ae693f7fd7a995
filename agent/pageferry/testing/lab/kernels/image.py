"""The initial RAM disk of a test guest: static programs, and Python with pageferry's own code.

Python is this machine's, cut down to the modules that the guest's test imports and to the libraries
that those need, each under its own path. Nothing is installed for it, and what runs in the guest is
what runs here.
"""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

IN_GUEST = "pageferry.testing.lab.kernels.in_guest"

LIST_MODULES = f"""
import importlib.util, os, runpy, sys
importlib.import_module({IN_GUEST!r}).import_all()
for module in list(sys.modules.values()):
    for name in ("__file__", "__cached__"):
        path = getattr(module, name, None)
        if path and os.path.exists(path):
            print(os.path.realpath(path) if name == "__file__" else path)
"""


class ImageError(Exception):
    """The image could not be put together; the message says why."""


@dataclass(slots=True)
class Image:
    """Files of an initial RAM disk, by their path in it."""

    files: dict[str, Path | bytes] = field(default_factory=dict)
    tests: list[str] = field(default_factory=list)
    """Lines for init: variables, a program, and its arguments."""

    def add(self, path: str, content: Path | bytes) -> None:
        """Put a file there: this machine's, or these bytes. Its folders come by themselves."""
        self.files[path] = content

    def add_python(self, *arguments: str) -> None:
        """Add Python with pageferry, and run the test of `in_guest` with these arguments."""
        executable = Path(sys.executable).resolve()
        modules = _output(sys.executable, "-c", LIST_MODULES).split("\n")
        paths = {Path(line) for line in modules if line}
        # Found while Python starts, before there is anything in sys.modules.
        paths |= set(Path(sys.base_prefix, _library(), "encodings").rglob("*"))
        programs = [executable, *(path for path in paths if path.suffix == ".so")]
        for path in (executable, *paths, *_libraries(programs)):
            if path.is_file():
                self.add(in_image(str(path)), path)
        search = ":".join(in_image(path) for path in sys.path if path and Path(path).is_dir())
        self.tests.append(f"PYTHONPATH={search} {executable} -S -B -m {IN_GUEST} {arguments[0]}")

    def write(self, output: Path) -> None:
        """Write it as the kernel reads it (Documentation/driver-api/early-userspace)."""
        self.add("/tests", "".join(f"{line}\n" for line in self.tests).encode())
        with output.open("wb") as archive:
            number = 0
            folders = {str(parent) for path in self.files for parent in Path(path).parents}
            for folder in sorted(folders - {"/"}):
                number += 1
                archive.write(_member(number, folder, stat.S_IFDIR | 0o755, b"", 0))
            for path, content in sorted(self.files.items()):
                number += 1
                archive.write(_file(number, path, content))
            archive.write(_member(0, "TRAILER!!!", 0, b"", 0))


def in_image(path: str) -> str:
    """Where a file of this machine is put. The guest's init mounts a tmpfs on /tmp, which would
    hide a checkout that lies there."""
    return f"/host{path}" if path.startswith("/tmp/") else path


def _file(number: int, path: str, content: Path | bytes) -> bytes:
    if isinstance(content, bytes):
        return _member(number, path, stat.S_IFREG | 0o644, content, 0)
    status = content.stat()
    mode = stat.S_IFREG | (status.st_mode & 0o777) | 0o444
    # Python takes compiled modules only if the source has the time that they name.
    return _member(number, path, mode, content.read_bytes(), int(status.st_mtime))


def _member(number: int, path: str, mode: int, content: bytes, modified: int) -> bytes:
    name = path.lstrip("/").encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, modified, len(content), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + name
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _library() -> str:
    return f"lib/python{sys.version_info.major}.{sys.version_info.minor}"


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """The shared libraries that these need, under the names that the loader looks for."""
    found: set[Path] = set()
    for program in programs:
        for path in re.findall(r"(/\S+) \(0x", _output("ldd", str(program))):
            found.add(Path(path))
    return found


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-800:]}")
    return done.stdout
