"""What a field of a message may hold, and its form on the wire.

A kind turns a value into its wire form (``to_wire``) and back (``from_wire``). ``from_wire`` trusts
nothing: it raises FieldError for all but a value that this kind may hold. Whatever is to be sent
passes through both, so that nothing leaves that the peer would refuse. Arrays on the wire are flat
(packing.py says why), hence pairs become ``[first0, second0, first1, second1, ...]``.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pageferry.model.blocks import PAGE_BYTES
from pageferry.wire.limits import (
    MAX_BLOCKS,
    MAX_CHANNELS,
    MAX_NAME_BYTES,
    MAX_PAGE_NUMBER,
    MAX_PROSE_CHARS,
    MAX_WORDS,
)


class FieldError(ValueError):
    """A field holds what it may not."""


class Kind(Protocol):
    """The two directions of one kind of field."""

    def to_wire(self, value: Any) -> object:
        """The wire form of *value*; may pass on nonsense, which ``from_wire`` then refuses."""

    def from_wire(self, value: object) -> object:
        """The value of the wire form. Raises FieldError and nothing else."""


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number between ``least`` and ``most``, both allowed. A bool is none."""

    most: int
    least: int = 0

    def to_wire(self, value: Any) -> object:
        return value

    def from_wire(self, value: object) -> int:
        if type(value) is not int or not self.least <= value <= self.most:
            raise FieldError(f"{_shown(value)} is no whole number in [{self.least}, {self.most}]")
        return value


class Flag:
    """True or False, and nothing that only counts as such."""

    def to_wire(self, value: Any) -> object:
        return value

    def from_wire(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise FieldError(f"{_shown(value)} is neither true nor false")
        return value


class Name:
    """A name of 1 to 255 bytes of printable text: it goes into logs, terminals and messages."""

    def to_wire(self, value: Any) -> object:
        return value

    def from_wire(self, value: object) -> str:
        # isprintable() is false for control characters and for lone surrogates.
        if not isinstance(value, str) or not value.isprintable():
            raise FieldError(f"{_shown(value)} is no printable name")
        if not 0 < len(value.encode()) <= MAX_NAME_BYTES:
            raise FieldError(f"{_shown(value)} is not 1 to {MAX_NAME_BYTES} bytes long")
        return value


class Prose:
    """Text for a person: printable characters and line ends, possibly none.

    What is to be sent is made to fit, since it often quotes what someone else said (QEMU, an
    OSError), and an error report that cannot be sent would hide the error.
    """

    def to_wire(self, value: Any) -> object:
        if not isinstance(value, str):
            return value
        kept = value[:MAX_PROSE_CHARS]
        return "".join(
            c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in kept
        )

    def from_wire(self, value: object) -> str:
        if not isinstance(value, str) or len(value) > MAX_PROSE_CHARS:
            raise FieldError(f"{_shown(value)} is no text of at most {MAX_PROSE_CHARS} characters")
        if not value.replace("\n", "").isprintable():
            raise FieldError(f"{_shown(value)} holds control characters")
        return value


class Words:
    """A command line's words, possibly none: printable, and few and short enough to look at."""

    def to_wire(self, value: Any) -> object:
        return list(value)

    def from_wire(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > MAX_WORDS:
            raise FieldError(f"{_shown(value)} is no list of at most {MAX_WORDS} words")
        for word in value:
            if not isinstance(word, str) or not word.isprintable() or len(word) > MAX_PROSE_CHARS:
                raise FieldError(
                    f"{_shown(word)} is no printable word of at most {MAX_PROSE_CHARS} characters"
                )
        return tuple(value)


@dataclass(frozen=True, slots=True)
class Hex:
    """Lower-case hexadecimal digits. Safe as part of a file's name."""

    least_chars: int
    most_chars: int

    def to_wire(self, value: Any) -> object:
        return value

    def from_wire(self, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]+", value):
            raise FieldError(f"{_shown(value)} is not made of lower-case hexadecimal digits")
        if not self.least_chars <= len(value) <= self.most_chars:
            raise FieldError(
                f"{_shown(value)} is not {self.least_chars} to {self.most_chars} digits long"
            )
        return value


@dataclass(frozen=True, slots=True)
class Blob:
    """Exactly ``length_bytes`` raw bytes."""

    length_bytes: int

    def to_wire(self, value: Any) -> object:
        return value

    def from_wire(self, value: object) -> bytes:
        if type(value) is not bytes or len(value) != self.length_bytes:
            # Not shown: it may be a secret.
            raise FieldError(f"not {self.length_bytes} bytes")
        return value


@dataclass(frozen=True, slots=True)
class Numbers:
    """A list of 1 to ``most_items`` whole numbers, each at most ``most``."""

    most_items: int
    most: int

    def to_wire(self, value: Any) -> object:
        return list(value)

    def from_wire(self, value: object) -> list[int]:
        numbers = _whole_numbers(value)
        if not 0 < len(numbers) <= self.most_items or max(numbers) > self.most:
            raise FieldError(f"{_shown(value)} is not 1 to {self.most_items} numbers")
        return numbers


class PageRuns:
    """Page runs as a flat list of gaps and counts, ``[gap0, count0, gap1, count1, ...]``.

    A gap is the distance in pages from the end of the run before, the first one from page 0.
    Checked here: pairs, no empty run, and an end below 2**48. Whether they lie within the block is
    checked by whoever knows the block. All at C speed: lists of 65536 items come by the thousand.
    """

    def to_wire(self, value: Any) -> object:
        return value

    def from_wire(self, value: object) -> list[int]:
        numbers = _whole_numbers(value)
        if not numbers or len(numbers) % 2:
            raise FieldError(f"{len(numbers)} numbers are no gaps and counts of page runs")
        if min(numbers[1::2]) == 0:
            raise FieldError("empty page run")
        if sum(numbers) > MAX_PAGE_NUMBER:
            raise FieldError("page runs that end beyond any guest's memory")
        return numbers


class Blocks:
    """RAM blocks as (name, length in bytes), in the order in which frames number them from 0."""

    def to_wire(self, value: Any) -> object:
        return _flattened(value)

    def from_wire(self, value: object) -> tuple[tuple[str, int], ...]:
        pairs = _pairs(value, MAX_BLOCKS)
        length = Number(most=MAX_PAGE_NUMBER * PAGE_BYTES, least=PAGE_BYTES)
        blocks = tuple((Name().from_wire(name), length.from_wire(size)) for name, size in pairs)
        for name, size_bytes in blocks:
            if size_bytes % PAGE_BYTES:
                raise FieldError(
                    f"RAM block {_shown(name)} of {size_bytes} bytes is no whole pages"
                )
        _refuse_repeats([name for name, _ in blocks])
        return blocks


class Digests:
    """A hash in hexadecimal digits for each RAM block's name."""

    def to_wire(self, value: Any) -> object:
        return _flattened(value.items())

    def from_wire(self, value: object) -> dict[str, str]:
        digest = Hex(least_chars=16, most_chars=128)
        pairs = [
            (Name().from_wire(name), digest.from_wire(digits))
            for name, digits in _pairs(value, MAX_BLOCKS)
        ]
        _refuse_repeats([name for name, _ in pairs])
        return dict(pairs)


def _shown(value: object) -> str:
    """*value* as it may stand in a message: short, and without control characters."""
    return reprlib.repr(value)


def _whole_numbers(value: object) -> list[int]:
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        raise FieldError(f"{_shown(value)} is no list of whole numbers")
    if value and min(value) < 0:
        raise FieldError(f"{min(value)} is negative")
    return value


def _pairs(value: object, most: int) -> list[tuple[object, object]]:
    if not isinstance(value, list) or len(value) % 2 or not 0 < len(value) // 2 <= most:
        raise FieldError(f"{_shown(value)} is no list of 1 to {most} pairs")
    return list(zip(value[::2], value[1::2], strict=True))


def _flattened(pairs: Any) -> list[object]:
    return [item for pair in pairs for item in pair]


def _refuse_repeats(names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise FieldError("RAM block named twice")


Bool = Annotated[bool, Flag()]
Uint32 = Annotated[int, Number(2**32 - 1)]
Uint63 = Annotated[int, Number(2**63 - 1)]
Version = Annotated[int, Number(2**16 - 1, least=1)]
RoundNumber = Annotated[int, Number(2**32 - 1, least=1)]
BlockIndex = Annotated[int, Number(MAX_BLOCKS - 1)]
ChannelIndex = Annotated[int, Number(MAX_CHANNELS - 1)]
ChannelCount = Annotated[int, Number(MAX_CHANNELS, least=1)]
NameText = Annotated[str, Name()]
WordList = Annotated[tuple[str, ...], Words()]
ProseText = Annotated[str, Prose()]
MigrationId = Annotated[str, Hex(least_chars=8, most_chars=64)]
Token = Annotated[bytes, Blob(32)]
FrameCounts = Annotated[list[int], Numbers(MAX_CHANNELS, 2**32 - 1)]
RunList = Annotated[list[int], PageRuns()]
BlockTable = Annotated[tuple[tuple[str, int], ...], Blocks()]
DigestTable = Annotated[dict[str, str], Digests()]
