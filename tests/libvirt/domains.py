"""Domains as docs/libvirt.md describes them, with the test guest in them."""

from __future__ import annotations

import re
from pathlib import Path

from pageferry.testing.lab.guest import freestanding_image

DOMAIN = "web1"

DOCUMENT = Path(__file__).parents[2] / "docs" / "libvirt.md"

RAM_MIB = 64

COMMAND_LINE = "cold_mib=24 hot_mib=4 zero_mib=8 seed=1 pace=16 repeat=1"


def domain_xml(qmp: Path, serial: Path, *, incoming: bool = False, memory: str = "file") -> str:
    """The domain of the document, with the test guest's kernel instead of a disk."""
    text = documented_xml("incoming" if incoming else "domain")
    kernel = f"<kernel>{freestanding_image()}</kernel><cmdline>{COMMAND_LINE}</cmdline>"
    port = f"<serial type='unix'><source mode='connect' path='{serial}'/></serial>"
    changes = {
        r"<memory .*?</memory>": f"<memory unit='MiB'>{RAM_MIB}</memory>",
        r"<source type='file'/>": f"<source type='{memory}'/>",
        r"unix:[^,]*,": f"unix:{qmp},",
        r"type='kvm'": "type='qemu'",
        r"<disk .*?</disk>": "",
        r"</type>": f"</type>{kernel}",
        r"</devices>": f"{port}</devices>",
    }
    for pattern, to in changes.items():
        found = re.findall(pattern, text, re.DOTALL)
        assert len(found) == 1, f"{pattern} in {DOCUMENT}"
        text = text.replace(found[0], to)
    return text


def documented_xml(name: str) -> str:
    """The XML of that name in docs/libvirt.md."""
    pattern = rf"<!-- {name} -->\n```xml\n(.*?)```"
    match = re.search(pattern, DOCUMENT.read_text(), re.DOTALL)
    assert match is not None, f"no XML {name} in {DOCUMENT}"
    return match[1]
