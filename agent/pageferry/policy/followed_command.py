"""A QEMU command line that follows the source's, made of what is known to be safe. Pure.

The words come from a peer, and whoever starts QEMU with words of somebody else's choice lets that
one run programs, load libraries, and read and write files as QEMU's user. So nothing is taken that
is not listed here: options, their keys, object and device types, drivers. What is not listed
refuses the whole command line; nothing is left out silently, since the machine would then be
another.

- The program is this host's own choice, never the peer's.
- A value with a slash in it is taken only where a path belongs, and the path must fit one of the
  patterns that this host's configuration has for the guest. What a path leads to is looked at by
  whoever starts it (`migration/launching.py`).
- Nothing that names a program, a script or a library is listed, and no back-end that reaches beyond
  this host.
- ``-S``, ``-incoming defer`` and ``-sandbox`` are this host's, whatever the source had.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from pageferry.policy.command_line import CommandLineError, options, values_of

NAME_PLACE: Final = "{name}"

SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""No program is started by that QEMU, whatever its options come to (seccomp)."""

TAP_PREFIX: Final = "tap:"
"""Of an interface's name among the paths that an option names."""

MAX_WORDS: Final = 1024
MAX_WORD_CHARS: Final = 4096

_OWN: Final = frozenset({"-S", "-incoming", "-sandbox", "-pidfile", "-D", "-L"})
"""Options of the source's host; -S, -incoming and -sandbox are added anew."""

_PLAIN: Final = frozenset(
    {"-nodefaults", "-no-user-config", "-no-hpet", "-no-shutdown", "-no-reboot", "-enable-kvm"}
)

_FREE_TEXT: Final = frozenset({"-append", "-name"})
"""Words for the guest or for people: QEMU looks at none of them as a path."""

_ONE_OF: Final[Mapping[str, frozenset[str]]] = {
    "-display": frozenset({"none"}),
    "-vga": frozenset({"none", "std", "cirrus", "virtio", "qxl"}),
    "-monitor": frozenset({"none"}),
    "-parallel": frozenset({"none", "null"}),
}

_SAFE_WORD: Final = re.compile(r"[A-Za-z0-9_.,=:+-]*")
_SIMPLE: Final = frozenset({"-m", "-smp", "-cpu", "-uuid", "-rtc", "-msg", "-overcommit", "-boot"})
"""Options whose values name nothing outside of QEMU, once they have no slash; see also below."""

_SIMPLE_UNSAFE_KEYS: Final = {"-boot": frozenset({"splash"})}

_MACHINE_KEYS: Final = frozenset(
    {"type", "accel", "memory-backend", "usb", "vmport", "dump-guest-core", "hpet", "smm", "pic"}
    | {"pit", "sata", "graphics", "mem-merge", "kernel_irqchip", "kernel-irqchip", "acpi", "smbus"}
    | {"nvdimm", "hmat", "i8042", "pflash0", "pflash1", "smbios-entry-point-type"}
)

_ACCELERATORS: Final = frozenset({"kvm", "tcg"})
_ACCEL_KEYS: Final = frozenset({"accel", "tb-size", "thread", "kernel-irqchip", "dirty-ring-size"})

_OBJECTS: Final[Mapping[str, frozenset[str]]] = {
    "memory-backend-file": frozenset(
        {"size", "mem-path", "share", "prealloc", "prealloc-threads", "merge", "dump", "policy"}
        | {"host-nodes", "x-use-canonical-path-for-ramblock-id", "align"}
    ),
    "memory-backend-memfd": frozenset(
        {"size", "share", "seal", "prealloc", "merge", "dump", "policy", "host-nodes"}
        | {"x-use-canonical-path-for-ramblock-id"}
    ),
    "iothread": frozenset({"poll-max-ns", "poll-grow", "poll-shrink"}),
    "rng-builtin": frozenset(),
}
"""Object types and their keys, besides qom-type and id."""

_DEVICES: Final = re.compile(
    r"virtio-(blk|net|scsi|balloon|rng|serial|vga|gpu|keyboard|mouse|tablet|input)"
    r"(-pci|-pci-transitional|-pci-non-transitional)?|virtio-vga|VGA|qxl-vga|cirrus-vga"
    r"|scsi-(hd|cd)|ide-(hd|cd)|pcie-root-port|pcie-pci-bridge|pci-bridge|qemu-xhci|nec-usb-xhci"
    r"|ich9-(ahci|usb-[eu]hci[0-9])|piix3-usb-uhci|usb-(tablet|kbd|mouse|hub)"
    r"|e1000e?|rtl8139|isa-serial|virtserialport|virtconsole|nvme|i6300esb"
)

_DEVICE_KEYS: Final = frozenset(
    {"driver", "id", "bus", "addr", "drive", "netdev", "chardev", "rng", "bootindex", "mac", "port"}
    | {"chassis", "slot", "multifunction", "hotplug", "iothread", "num-queues", "queue-size", "mq"}
    | {
        "vectors",
        "disable-legacy",
        "disable-modern",
        "serial",
        "write-cache",
        "share-rw",
        "channel",
    }
    | {"wwn", "logical_block_size", "physical_block_size", "discard_granularity", "lun"}
    | {"scsi-id", "device_id", "werror", "rerror", "nr", "name", "max_ports", "index", "p2", "p3"}
    | {"vgamem_mb", "ram_size", "vram_size", "vram64_size_mb", "max_outputs", "host_mtu"}
    | {"free-page-reporting", "deflate-on-oom", "max-bytes", "period", "rombar", "config-wce"}
    | {"iommu_platform", "ats", "packed", "event_idx", "indirect_desc", "masterbus", "firstport"}
    | {"acpi-index", "io-reserve", "mem-reserve", "pref64-reserve", "bus-reserve"}
)

_DRIVE_KEYS: Final = frozenset(
    {"file", "if", "id", "format", "cache", "aio", "readonly", "read-only", "discard", "index"}
    | {"detect-zeroes", "media", "werror", "rerror", "bus", "unit"}
)
_DRIVE_FORMATS: Final = frozenset({"raw", "qcow2"})
"""A format must be named: QEMU would else believe what a guest has written to its disk's head."""

_BLOCK_DRIVERS: Final = frozenset({"file", "host_device", "raw", "qcow2"})
_BLOCK_KEYS: Final = frozenset(
    {"driver", "node-name", "filename", "file", "read-only", "auto-read-only", "discard", "aio"}
    | {"detect-zeroes", "cache.direct", "cache.no-flush", "locking", "backing"}
)

_CHARDEVS: Final[Mapping[str, frozenset[str]]] = {
    "null": frozenset({"backend", "id"}),
    "socket": frozenset({"backend", "id", "path", "server", "wait", "reconnect"}),
}

_TAP_KEYS: Final = frozenset({"type", "id", "ifname", "script", "downscript", "vhost", "queues"})


class NotFollowedError(ValueError):
    """A command line that is not followed; the message says why, in the peer's words cut short."""


@dataclass(frozen=True, slots=True)
class FollowRules:
    """What this host follows: patterns of absolute paths and of names of tap interfaces, in which
    ``{name}`` is the guest's name, and ``*`` does not stand for a slash."""

    program: str
    paths: tuple[str, ...]
    interfaces: tuple[str, ...] = ()

    def allows(self, path: str, guest: str) -> bool:
        """Whether *path*, or the interface that stands in its place, fits one of the patterns."""
        if path.startswith(TAP_PREFIX):
            name = [path.removeprefix(TAP_PREFIX)]
            return any(
                _fits(name, [pattern.replace(NAME_PLACE, _quoted(guest))])
                for pattern in self.interfaces
            )
        parts = path.split("/")
        if not path.startswith("/") or any(part in ("", ".", "..") for part in parts[1:]):
            return False
        # -initrd takes several files with commas between them, and an argument after a blank.
        if not path.isprintable() or re.search(r"[,\s]", path):
            return False
        return any(
            _fits(parts, pattern.replace(NAME_PLACE, _quoted(guest)).split("/"))
            for pattern in self.paths
        )


def followed_command(
    words: Sequence[str], rules: FollowRules, guest: str
) -> tuple[list[str], list[str]]:
    """The command that starts a QEMU like the one with these words (program and arguments), and
    all files in it. Raises NotFollowedError."""
    if len(words) > MAX_WORDS or any(len(word) > MAX_WORD_CHARS for word in words):
        raise NotFollowedError("it is too long")
    arguments: list[str] = []
    paths: list[str] = []
    try:
        for name, value in options(words[1:]):
            if name in _OWN:
                continue
            paths += _checked(name, value)
            arguments += [name] if name in _PLAIN else [name, value]
    except CommandLineError as error:
        raise NotFollowedError(str(error)) from None
    for path in paths:
        if not rules.allows(path, guest):
            raise NotFollowedError(f"{path[:120]!r} fits no pattern of this host's")
    own = ["-S", "-incoming", "defer", "-sandbox", SANDBOX]
    files = [path for path in paths if not path.startswith(TAP_PREFIX)]
    return [rules.program, *arguments, *own], files


def _checked(name: str, value: str) -> Iterator[str]:
    """The paths that an option names. Raises NotFollowedError, CommandLineError."""
    if name in _PLAIN or name in _FREE_TEXT:
        return
    if name in _ONE_OF:
        if value not in _ONE_OF[name]:
            raise _refused(name, value)
    elif name in _SIMPLE:
        _check_simple(name, value)
    elif name in ("-kernel", "-initrd"):
        yield value
    elif name == "-serial":
        if value not in ("none", "null") and not re.fullmatch(r"chardev:[\w.-]+", value):
            raise _refused(name, value)
    elif name in _READERS:
        key, read = _READERS[name]
        yield from read(name, values_of(value, key))
    else:
        raise NotFollowedError(f"the option {name[:40]} is not followed")


def _check_simple(name: str, value: str) -> None:
    if not _SAFE_WORD.fullmatch(value):
        raise _refused(name, value)
    if _SIMPLE_UNSAFE_KEYS.get(name, frozenset()) & values_of(value, "order").keys():
        raise _refused(name, value)


def _machine(name: str, values: Mapping[str, str]) -> Iterator[str]:
    _check_keys(name, values, _MACHINE_KEYS)
    _check_no_paths(name, values)
    if not set(values.get("accel", "tcg").split(":")) <= _ACCELERATORS:
        raise _refused(name, values["accel"])
    yield from ()


def _accel(name: str, values: Mapping[str, str]) -> Iterator[str]:
    _check_keys(name, values, _ACCEL_KEYS)
    _check_no_paths(name, values)
    if values.get("accel") not in _ACCELERATORS:
        raise _refused(name, values.get("accel", ""))
    yield from ()


def _object(name: str, values: Mapping[str, str]) -> Iterator[str]:
    kind = values.get("qom-type", "")
    if kind not in _OBJECTS:
        raise NotFollowedError(f"objects of type {kind[:40]!r} are not followed")
    _check_keys(name, values, _OBJECTS[kind] | {"qom-type", "id"})
    _check_no_paths(name, values, but="mem-path")
    if kind == "memory-backend-file":
        yield values.get("mem-path", "")


def _device(name: str, values: Mapping[str, str]) -> Iterator[str]:
    kind = values.get("driver", "")
    if not _DEVICES.fullmatch(kind):
        raise NotFollowedError(f"devices of type {kind[:40]!r} are not followed")
    _check_keys(name, values, _DEVICE_KEYS)
    _check_no_paths(name, values)
    yield from ()


def _drive(name: str, values: Mapping[str, str]) -> Iterator[str]:
    _check_keys(name, values, _DRIVE_KEYS)
    _check_no_paths(name, values, but="file")
    if values.get("format") not in _DRIVE_FORMATS:
        raise NotFollowedError("a drive without format=raw or format=qcow2 is not followed")
    yield values.get("file", "")


def _blockdev(name: str, values: Mapping[str, str]) -> Iterator[str]:
    # A node may have its file's node within: "file.driver", "file.filename".
    for prefix in ("", "file."):
        node = {
            key.removeprefix(prefix): value
            for key, value in values.items()
            if key.startswith(prefix) and (prefix or not key.startswith("file."))
        }
        if prefix and not node:
            continue
        if node.get("driver") not in _BLOCK_DRIVERS:
            raise NotFollowedError(
                f"the block driver {node.get('driver', '')[:40]!r} is not followed"
            )
        _check_keys(name, node, _BLOCK_KEYS)
        _check_no_paths(name, node, but="filename")
        if "filename" in node:
            yield node["filename"]


def _chardev(name: str, values: Mapping[str, str]) -> Iterator[str]:
    kind = values.get("backend", "")
    if kind not in _CHARDEVS:
        raise NotFollowedError(f"character devices of type {kind[:40]!r} are not followed")
    _check_keys(name, values, _CHARDEVS[kind])
    _check_no_paths(name, values, but="path")
    if kind == "socket":
        yield values.get("path", "")


def _netdev(name: str, values: Mapping[str, str]) -> Iterator[str]:
    kind = values.get("type", "")
    if kind != "tap":
        # Also not "user": its guest reaches what this host reaches, its loopback among it.
        raise NotFollowedError(f"network back-ends of type {kind[:40]!r} are not followed")
    _check_keys(name, values, _TAP_KEYS)
    _check_no_paths(name, values)
    if {values.get("script"), values.get("downscript")} != {"no"}:
        raise NotFollowedError("a tap without script=no and downscript=no is not followed")
    yield TAP_PREFIX + values.get("ifname", "")


def _mon(name: str, values: Mapping[str, str]) -> Iterator[str]:
    _check_keys(name, values, frozenset({"chardev", "id", "mode", "pretty"}))
    _check_no_paths(name, values)
    yield from ()


def _qmp(name: str, values: Mapping[str, str]) -> Iterator[str]:
    _check_keys(name, values, frozenset({"address", "server", "wait"}))
    address = values.get("address", "")
    if not address.startswith("unix:"):
        raise _refused(name, address)
    yield address.removeprefix("unix:")


_READERS: Final = {
    "-machine": ("type", _machine),
    "-M": ("type", _machine),
    "-accel": ("accel", _accel),
    "-object": ("qom-type", _object),
    "-device": ("driver", _device),
    "-drive": ("file", _drive),
    "-blockdev": ("driver", _blockdev),
    "-chardev": ("backend", _chardev),
    "-netdev": ("type", _netdev),
    "-mon": ("chardev", _mon),
    "-qmp": ("address", _qmp),
}
"""Options that are read by keys: the key of a first part without one, and what checks it."""


def _check_keys(name: str, values: Mapping[str, str], known: frozenset[str]) -> None:
    for key in values:
        if key not in known:
            raise NotFollowedError(f"{name} with {key[:40]!r} is not followed")


def _check_no_paths(name: str, values: Mapping[str, str], but: str = "") -> None:
    for key, value in values.items():
        if key != but and "/" in value:
            raise _refused(name, value)


def _refused(name: str, value: str) -> NotFollowedError:
    return NotFollowedError(f"{name} {value[:80]!r} is not followed")


def _fits(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _quoted(text: str) -> str:
    """*text* with nothing in it that fnmatch takes for a pattern."""
    return re.sub(r"([*?\[])", r"[\1]", text)
