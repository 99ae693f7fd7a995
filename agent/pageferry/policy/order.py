"""In which order pages are sent."""

from __future__ import annotations

from typing import Protocol, Self, TypeVar


class Pages(Protocol):
    """A set of pages; kernel.PageSet and model.ReferencePageSet are some."""

    def copy(self) -> Self: ...

    def keep_all(self, other: Self, /) -> None: ...

    def discard_all(self, other: Self, /) -> None: ...


AnyPages = TypeVar("AnyPages", bound=Pages)


def split_resident(resident: AnyPages, mapped: AnyPages) -> tuple[AnyPages, AnyPages]:
    """The resident pages in two parts: those to send first, and those to send last.

    Last come the ones that QEMU maps now: the guest used them lately, so it is likeliest to write
    them again, and each write after the page was sent costs sending it once more. The arguments are
    left as they are; the parts are disjoint and make up *resident*.
    """
    last = resident.copy()
    last.keep_all(mapped)
    first = resident.copy()
    first.discard_all(last)
    return first, last
