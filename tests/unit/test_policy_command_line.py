"""Reading QEMU's command lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.policy.command_line import (
    CommandLineError,
    complaint_about_launch,
    options,
    ram_paths,
    values_of,
)

QMP = "/run/qemu/web1.qmp"
GOOD = ["/usr/bin/qemu", "-S", "-incoming", "defer", "-qmp", f"unix:{QMP},server=on,wait=off"]


def test_options_have_values_unless_they_are_flags() -> None:
    found = list(options(["-S", "--name", "web1", "-nodefaults", "-m", "64M"]))
    assert found == [("-S", ""), ("-name", "web1"), ("-nodefaults", ""), ("-m", "64M")]


@pytest.mark.parametrize("arguments", [["disk.img"], ["-"], ["-m"]])
def test_what_is_no_option_is_refused(arguments: list[str]) -> None:
    with pytest.raises(CommandLineError):
        list(options(arguments))


def test_values_are_read_as_qemu_does() -> None:
    assert values_of("file=/a,,b.img,if=none,snapshot") == {
        "file": "/a,b.img",
        "if": "none",
        "snapshot": "on",
    }
    assert values_of("q35,accel=tcg", "type") == {"type": "q35", "accel": "tcg"}
    told = '{"driver": "qcow2", "file": {"driver": "file", "aio": "native"}, "read-only": true}'
    assert values_of(told) == {
        "driver": "qcow2",
        "file.driver": "file",
        "file.aio": "native",
        "read-only": "on",
    }


@pytest.mark.parametrize("text", ["a=1,a=2", "=1", "{", "[]x{", '{"a": null}', "{" * 3000])
def test_values_that_make_no_sense_are_refused(text: str) -> None:
    if text == "[]x{":
        assert values_of(text) == {"[]x{": "on"}
        return
    with pytest.raises(CommandLineError):
        values_of(text)


@given(st.dictionaries(st.text("abc.-", min_size=1), st.text("x,=/", min_size=1), min_size=1))
def test_doubled_commas_keep_values_whole(values: dict[str, str]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in values.items())
    assert values_of(text) == values


def test_launch_command_that_will_do() -> None:
    assert complaint_about_launch(GOOD, QMP) == ""
    run = ["/usr/bin/systemd-run", "--collect", *GOOD]
    assert complaint_about_launch(run, QMP) == ""
    chardev = [*GOOD[:4], "-chardev", f"socket,id=m,path={QMP},server=on", "-mon", "m"]
    assert complaint_about_launch([each.replace("-S", "--S") for each in chardev], QMP) == ""


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ([each for each in GOOD if each != "-S"], "-S"),
        ([each.replace("defer", "tcp:0:1") for each in GOOD], "-incoming defer"),
        (GOOD[:4], "no monitor"),
        ([*GOOD[:4], "-qmp", "unix:/other,server=on"], "no monitor"),
        ([*GOOD, "-daemonize"], "-daemonize"),
    ],
)
def test_launch_command_that_would_run_the_guest_is_refused(command: list[str], named: str) -> None:
    assert named in complaint_about_launch(command, QMP)


def test_ram_files_are_found_in_either_form() -> None:
    arguments = [
        *("-object", "memory-backend-file,id=a,size=1G,mem-path=/dev/shm/a"),
        *("--object", '{"qom-type": "memory-backend-file", "id": "b", "mem-path": "/dev/shm/b"}'),
        *("-object", "memory-backend-memfd,id=c,size=1G", "-object", "{", "-drive", "file=/d"),
        *("-object", "memory-backend-file,id=e,mem-path=relative"),
    ]
    assert ram_paths(arguments) == ["/dev/shm/a", "/dev/shm/b"]
