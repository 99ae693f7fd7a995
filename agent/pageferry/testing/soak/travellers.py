"""The guests of a soak: each goes back and forth, and can be asked whether all of it came along."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from pageferry.testing.lab.disks import LabDisk, blank_image
from pageferry.testing.lab.guests import FreestandingGuest, GuestPlan, freestanding_guest
from pageferry.testing.lab.linux_guest import LinuxGuest, LinuxPlan, linux_guest
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.paired import PairedGuest
from pageferry.testing.lab.qemus import Machine
from pageferry.testing.soak.judging import Finding, Kind
from pageferry.testing.soak.wire import Listener, listener

HOSTS = ("source", "destination")
"""Names of the two hosts, and of a guest's QEMU on each: the guest begins on the first."""

DISK_MIB = 4

ALIVE_WORDS = 5
ALIVE_SAMPLES = 3


class Traveller(Protocol):
    """A guest that goes back and forth."""

    @property
    def name(self) -> str:
        """Its name, the same on both hosts."""

    @property
    def guest(self) -> PairedGuest:
        """It and its QEMUs."""

    def change(self, host: str) -> Callable[[Machine], Machine] | None:
        """What its QEMU on that host has of its own."""

    def begin_step(self) -> None:
        """It is about to be migrated."""

    def check(self) -> list[Finding]:
        """Ask it whether it lives and has all it had. LabError when it does not answer."""

    def described(self) -> str:
        """How far it has got, in a few words."""


class Freestanding:
    """Overcommitted: most of its cold memory lies in swap. Its memory is all that it has."""

    name = "freestanding"

    def __init__(self, guest: FreestandingGuest) -> None:
        self.guest = guest
        self._generation = 0

    def change(self, _host: str) -> None:
        """Its QEMUs are alike."""

    def begin_step(self) -> None:
        """Nothing to do."""

    def check(self) -> list[Finding]:
        """Its memory, and that it got on."""
        self.guest.wait_samples(ALIVE_SAMPLES)
        found = self.guest.verify()
        wrong = []
        if found.bad:
            wrong += [f"{found.bad} of {found.pages} pages: {'; '.join(found.details[:3])}"]
        if found.generation < self._generation:
            wrong += [f"generation {found.generation} after {self._generation}"]
        self._generation = found.generation
        return [Finding(Kind.CORRUPT, f"freestanding guest: {each}") for each in wrong]

    def described(self) -> str:
        """Its generation."""
        return f"generation {self._generation}"


class Linux:
    """A Linux with a disk that it writes to and a network on which it talks, both without end."""

    name = "linux"

    def __init__(self, guest: LinuxGuest, heard_by: Listener) -> None:
        self.guest = guest
        self._listener = heard_by
        self._generation = self._record = 0

    def change(self, host: str) -> Callable[[Machine], Machine]:
        """Its network on that host."""
        return self._listener.change(host)

    def begin_step(self) -> None:
        """It may change its host once more."""
        self._listener.begin_step()

    def check(self) -> list[Finding]:
        """Its network, its memory and its disk, and that it got on with each."""
        self.guest.wait_words(ALIVE_WORDS)
        memory = self.guest.verify_memory()
        disk = self.guest.recall_records()
        wrong = list(self._listener.wrong)
        self._listener.wrong.clear()
        if memory.bad:
            wrong += [f"{memory.bad} of {memory.pages} pages of memory"]
        if memory.generation < self._generation:
            wrong += [f"generation {memory.generation} after {self._generation}"]
        if disk.bad:
            wrong += [f"{disk.bad} records on the disk"]
        if disk.last < self._record:
            wrong += [f"record {disk.last} after {self._record}"]
        if self.guest.words.bad:
            wrong += [f"{self.guest.words.bad} words came back damaged"]
        if wrong:
            wrong += [line for line in self.guest.lines if line.startswith("B ")][-3:]
        self._generation, self._record = memory.generation, disk.last
        return [Finding(Kind.CORRUPT, f"linux guest: {each}") for each in wrong]

    def described(self) -> str:
        """What it has written and said."""
        words = self.guest.words
        return (
            f"generation {self._generation}, record {self._record}, word {words.words}"
            f" ({words.repeated} repeated)"
        )


@contextlib.contextmanager
def freestanding_traveller(binary: QemuBinary) -> Iterator[Freestanding]:
    """A settled one: about half of its memory lies in swap."""
    plan = GuestPlan(binary, pace=4, limit_mib=96)
    with freestanding_guest(plan) as guest:
        guest.wait_ready()
        guest.settle(0.9)
        yield Freestanding(guest)


@contextlib.contextmanager
def linux_traveller(binary: QemuBinary) -> Iterator[Linux]:
    """A busy one, without a limit."""
    with listener() as heard_by, blank_image(DISK_MIB) as image:
        disk = LabDisk("data", image, writable=True)
        plan = LinuxPlan(binary, disks=(disk,), arguments=heard_by.arguments(HOSTS[0]))
        with linux_guest(plan) as guest:
            guest.wait_ready()
            guest.write_memory(mib=24, pace=2)
            guest.write_records(slots=DISK_MIB * 256)
            guest.talk()
            guest.wait_words(ALIVE_WORDS)
            yield Linux(guest, heard_by)
