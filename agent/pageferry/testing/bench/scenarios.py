"""What is measured: guests, the links between their hosts, and who carries them.

Declarations only. `docs/performance.md` says what each scenario is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pageferry.model.parameters import KEYS, MigrationParameters
from pageferry.testing.lab.baseline import QemuMode
from pageferry.testing.lab.guests import GuestPlan
from pageferry.testing.lab.packages import QemuBinary
from pageferry.testing.lab.settled import overcommitted_plan

CONNECTIONS = MigrationParameters().channels
"""Data connections of pageferry and multifd channels of QEMU: the same number for both."""

GIGABIT = 1_000_000_000

PAGEFERRY = "pageferry"
QEMU = "qemu"
MULTIFD = "qemu-multifd"
MULTIFD_ZSTD = "qemu-multifd-zstd"


class Limit(Enum):
    """What no migration on this machine can be faster than."""

    COPY = "copy"
    """A plain copy over loopback into fresh shared memory."""
    PAGING = "paging"
    """A plain loop that pages the same memory in and out."""
    LINK = "link"
    """The bytes divided by the link's rate, nothing compressed."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One guest, carried by each of the contenders.

    `link_bits_per_s` None: loopback. `parameters`: pageferry's, by key. `once`: contenders that
    are run once only, for the time they take. `throttled`: the guest may be slowed down to end.
    `timeout_s`: a migration that takes longer is cancelled, and counts as one that does not end.
    """

    name: str
    title: str
    plan: GuestPlan
    contenders: tuple[str, ...] = (PAGEFERRY, QEMU, MULTIFD)
    limit: Limit = Limit.COPY
    link_bits_per_s: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    once: frozenset[str] = frozenset()
    throttled: bool = False
    timeout_s: float = 120.0
    before_s: float = 1.0
    after_s: float = 0.5

    @property
    def overcommitted(self) -> bool:
        """Whether a part of the guest lies in swap."""
        return self.plan.limit_mib is not None


def scenarios(binary: QemuBinary, *, quick: bool) -> tuple[Scenario, ...]:
    """All scenarios, in the order in which they run; `quick`: smaller guests."""
    share = 2 if quick else 1
    return (
        Scenario(
            "idle",
            "resident, idle",
            GuestPlan(binary, ram_mib=1280, cold_mib=1024 // share, hot_mib=1, zero_mib=0, pace=1),
        ),
        _busy(binary, "busy-60", 16, "62 MiB/s", share),
        _busy(binary, "busy-250", 64, "250 MiB/s", share),
        Scenario(
            "busy-flat-out",
            "resident, rewriting 384 MiB without a pause",
            GuestPlan(binary, ram_mib=1024, cold_mib=256 // share, hot_mib=384, zero_mib=0, pace=0),
            timeout_s=60.0,
        ),
        Scenario(
            "busy-beyond",
            "resident, rewriting 96 MiB at 250 MiB/s, over 1 Gbit/s",
            GuestPlan(binary, ram_mib=256, cold_mib=64 // share, hot_mib=96, zero_mib=0, pace=64),
            limit=Limit.LINK,
            link_bits_per_s=GIGABIT,
            throttled=True,
            timeout_s=20.0 if quick else 30.0,
        ),
        _overcommitted(binary, "overcommitted-160", 160, quick),
        _overcommitted(binary, "overcommitted-256", 256, quick),
        Scenario(
            "sparse",
            f"{4 // share} GiB, of which 160 MiB exist",
            GuestPlan(binary, ram_mib=4096 // share, cold_mib=144, hot_mib=16, zero_mib=0, pace=4),
        ),
        Scenario(
            "compressible-1gbit",
            "compressible, over 1 Gbit/s",
            GuestPlan(
                binary,
                ram_mib=768,
                cold_mib=512 // share,
                hot_mib=1,
                zero_mib=0,
                pace=1,
                repeat=4,
            ),
            contenders=(PAGEFERRY, QEMU, MULTIFD, MULTIFD_ZSTD),
            limit=Limit.LINK,
            link_bits_per_s=GIGABIT,
            parameters={"compression": "auto"},
        ),
    )


def qemu_mode(contender: str, scenario: Scenario) -> QemuMode:
    """How QEMU migrates for this contender. KeyError when it is not one of QEMU's."""
    channels, compression = {
        QEMU: (0, None),
        MULTIFD: (CONNECTIONS, None),
        MULTIFD_ZSTD: (CONNECTIONS, "zstd"),
    }[contender]
    return QemuMode(contender, channels, compression, auto_converge=scenario.throttled)


def known_parameters(scenario: Scenario) -> dict[str, Any]:
    """Those of the scenario's parameters that this pageferry has."""
    known = set(KEYS.values())
    wanted = {**scenario.parameters, **({"auto-converge": True} if scenario.throttled else {})}
    return {key: value for key, value in wanted.items() if key in known}


def _busy(binary: QemuBinary, name: str, pace: int, rate: str, share: int) -> Scenario:
    return Scenario(
        name,
        f"resident, rewriting 256 MiB at {rate}",
        GuestPlan(binary, ram_mib=1024, cold_mib=384 // share, hot_mib=256, zero_mib=0, pace=pace),
        timeout_s=60.0,
    )


def _overcommitted(binary: QemuBinary, name: str, limit_mib: int, quick: bool) -> Scenario:
    base = overcommitted_plan(binary)
    return Scenario(
        name,
        f"overcommitted: {base.cold_mib} MiB cold, {base.hot_mib} MiB hot, within {limit_mib} MiB",
        GuestPlan(
            binary,
            ram_mib=base.ram_mib,
            cold_mib=base.cold_mib,
            hot_mib=base.hot_mib,
            zero_mib=base.zero_mib,
            limit_mib=limit_mib,
        ),
        limit=Limit.PAGING,
        once=frozenset({QEMU}),
        before_s=1.5 if quick else 3.0,
        after_s=1.0 if quick else 2.0,
    )
