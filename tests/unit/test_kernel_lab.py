"""The pure parts of the kernel laboratory: reports, records, sources of another suite, images."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from pageferry.testing.lab.kernels.booting import read_console
from pageferry.testing.lab.kernels.image import Image, in_image
from pageferry.testing.lab.kernels.in_guest import steps_back
from pageferry.testing.lab.kernels.record import Outcome, Result, may_skip
from pageferry.testing.lab.kernels.series import Series, series_named
from pageferry.testing.lab.kernels.sources import blob_name, sources_of_suite

CONSOLE = """\
early noise
GUEST RUNS: /bin/pagemap_shmem_swap
TAP version 13
1..3
ok 1 read: with page tables
# page 3: 0, but it is swapped
not ok 2 read: huge pages
ok 3 # SKIP scan: huge pages
GUEST RAN: /bin/pagemap_shmem_swap: exit 1
[    3.1] BUG: KASAN: use-after-free in foo
GUEST DONE
"""


def test_console_is_taken_apart() -> None:
    report = read_console(CONSOLE)
    program = report.program("pagemap_shmem_swap")
    assert program.passed == ["read: with page tables"]
    assert program.failed == ["read: huge pages"]
    assert program.skipped == ["scan: huge pages"]
    assert program.ended == "exit 1"
    assert report.complaints == ["[    3.1] BUG: KASAN: use-after-free in foo"]


def outcome(passed: int, *failed: str, skipped: tuple[str, ...] = ()) -> Outcome:
    return Outcome(passed, list(failed), list(skipped), "exit 1" if failed else "exit 0")


def good_result(series: Series) -> Result:
    fine = {"agent": outcome(7), "soft-dirty": outcome(15)}
    return Result(
        *(series.name, series.digest, "6.12", "gcc", "7.2"),
        checks={
            "patched": {"pagemap_shmem_swap": outcome(44), **fine},
            "unpatched": {"pagemap_shmem_swap": outcome(6, "read: huge pages"), **fine},
        },
        mutants={"a mistake": 3},
    )


def test_good_result_has_no_fault() -> None:
    series = series_named("v6.12")
    assert good_result(series).faults(series) == []


@pytest.mark.parametrize(
    ("variant", "program", "bad", "fault"),
    [
        ("patched", "pagemap_shmem_swap", outcome(43, "read: x"), "selftest failed"),
        ("patched", "pagemap_shmem_swap", outcome(43, skipped=("read: x",)), "skipped"),
        ("patched", "pagemap_shmem_swap", outcome(0), "skipped everything"),
        ("unpatched", "pagemap_shmem_swap", outcome(44), "shows nothing"),
        ("patched", "agent", outcome(6, "ways agree"), "pageferry's own code failed"),
        ("patched", "agent", Outcome(7, [], [], "signal 11"), "pageferry's own code failed"),
        ("patched", "soft-dirty", outcome(14, "one"), "something else with the series"),
    ],
)
def test_each_way_to_go_wrong_is_a_fault(
    variant: str, program: str, bad: Outcome, fault: str
) -> None:
    series = series_named("v6.12")
    result = good_result(series)
    result.checks[variant][program] = bad
    assert any(fault in text for text in result.faults(series))


def test_complaints_and_surviving_mutants_are_faults() -> None:
    series = series_named("v6.12")
    result = good_result(series)
    result.complaints["debug"] = ["WARNING: possible recursive locking detected"]
    result.mutants["another mistake"] = 0
    assert len(result.faults(series)) == 2


def test_old_kernels_may_skip_what_they_cannot_have() -> None:
    new, old = series_named("v6.12"), series_named("v6.1")
    assert may_skip(old, "scan: huge pages")
    assert not may_skip(old, "read: huge pages")
    assert not may_skip(new, "scan: huge pages")


def test_sources_of_another_suite() -> None:
    deb822 = (
        "Types: deb deb-src\n# a mirror\nURIs: http://a/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\nSigned-By: /k.gpg\n\n"
        "Types: deb\nURIs: http://a/security\nSuites: bookworm-security\nComponents: main\n"
    )
    assert sources_of_suite(deb822, "bookworm", "sid", deb822=True) == (
        "Types: deb\nSuites: sid\nURIs: http://a/debian\nComponents: main\nSigned-By: /k.gpg\n"
    )
    lines = "# deb http://a x main\ndeb [a=b] http://a/debian bookworm main contrib\n"
    assert (
        sources_of_suite(
            lines + "deb http://b bookworm-security main\n", "bookworm", "sid", deb822=False
        )
        == "deb [a=b] http://a/debian sid main contrib\n"
    )


def test_blob_name_is_git_s(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("hello\n")
    assert blob_name(file) == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_checkout_below_tmp_is_not_hidden_by_the_guests_own() -> None:
    assert in_image("/tmp/checkout/agent/pageferry") == "/host/tmp/checkout/agent/pageferry"
    assert in_image("/srv/tmp/agent") == "/srv/tmp/agent"


def test_image_is_an_archive_that_cpio_reads(tmp_path: Path) -> None:
    image = Image()
    image.add("/bin/tool", Path("/bin/true"))
    image.add("/etc/deep/down", b"content")
    image.tests.append("/bin/tool")
    image.write(tmp_path / "image.cpio")
    data = (tmp_path / "image.cpio").read_bytes()
    assert data.startswith(b"070701")
    assert len(data) % 4 == 0
    names = [b"bin\0", b"bin/tool\0", b"etc\0", b"etc/deep\0", b"etc/deep/down\0", b"tests\0"]
    positions = [data.index(name) for name in names]
    assert positions[0] < positions[1]
    assert positions[2] < positions[3] < positions[4]
    assert b"content" in data
    assert b"TRAILER!!!" in data


def test_steps_back_counts_batches_that_begin_before_the_last_one() -> None:
    forward = [(0, slot) for slot in range(10)]
    assert steps_back(forward, 2) == 0
    assert steps_back([*forward[5:], *forward[:5]], 5) == 1
    assert steps_back([(0, 1), (0, 0), (0, 3), (0, 2)], 2) == 0


def test_code_digest_is_the_same_when_only_words_change(tmp_path: Path) -> None:
    series = series_named("v6.12")
    patches = []
    for patch in series.patches:
        text = patch.read_text(encoding="utf-8")
        (tmp_path / patch.name).write_text(text.replace("\n---\n", "\nMore words.\n---\n", 1))
        patches.append(tmp_path / patch.name)
    other = dataclasses.replace(series, patches=tuple(patches))
    assert other.code_digest == series.code_digest
    assert other.digest != series.digest


def test_guest_programs_compile_without_a_warning(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "kernel-patches/guest"
    command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    for name in ("init", "cost"):
        subprocess.run([*command, str(folder / f"{name}.c")], check=True)
