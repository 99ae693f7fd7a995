"""Where the daemon calls what other packages do, in one place that tests can replace.

Imported only when called: they load the kernel extension and QEMU's client, which the daemon itself
does not need, and a host where one of them cannot be loaded still gets an answer that says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pageferry.daemon.config import Config
from pageferry.daemon.estimating import run_estimation
from pageferry.model.gone import DestinationGone
from pageferry.model.verdict import Check, Room
from pageferry.net.encryption import Encryption

_DEFAULT_ENCRYPTION = Encryption()


async def _settle(
    state_dir: Path,
    migration_id: str,
    encryption: Encryption = _DEFAULT_ENCRYPTION,
    *,
    only_plan: bool = False,
    word: DestinationGone | None = None,
) -> list[dict[str, Any]]:
    recovery = importlib.import_module("pageferry.migration.recovery")
    found = await recovery.settle(
        state_dir, migration_id, encryption, only_plan=only_plan, word=word
    )
    return [each.as_dict() for each in found]


_plan = partial(_settle, only_plan=True)


def _journalled_phase(state_dir: Path, migration_id: str) -> tuple[str, str, str]:
    recovery = importlib.import_module("pageferry.migration.recovery")
    phase, detail, guest = recovery.journalled_phase(state_dir, migration_id)
    return str(phase), str(detail), str(guest)


async def _residency(qmp: Path, cells: int | None) -> dict[str, Any]:
    inspection = importlib.import_module("pageferry.migration.inspection")
    summary: dict[str, Any] = await inspection.guest_residency(qmp, cells)
    return summary


async def _check_host() -> list[Check]:
    checkup = importlib.import_module("pageferry.migration.checkup")
    checks: list[Check] = await checkup.check_host()
    return checks


async def _check_guest(name: str, qmp: Path, side: str | None = None) -> list[Check]:
    checkup = importlib.import_module("pageferry.migration.checkup")
    checks: list[Check] = await checkup.check_guest(name, qmp, side)
    return checks


def _room() -> Room:
    checkup = importlib.import_module("pageferry.migration.checkup")
    found: Room = checkup.room()
    return found


def _check_tls(config: Config) -> list[Check]:
    doctor = importlib.import_module("pageferry.daemon.doctor")
    checks: list[Check] = doctor.check_tls(config)
    return checks


@dataclass(frozen=True, slots=True)
class Hooks:
    """The calls.

    ``settle``: bring what dead workers of one migration left behind to an end; a map for each
    journal that it has on this host (``role``, ``phase``, ``settled``, ``message``, and what was
    ``found`` and the ``plan`` that followed). ``plan``: the same, without doing anything.
    ``journalled_phase``: the destination's phase of a migration, a word on it, the guest's name.
    ``check_guest``: what the doctor finds of a guest, as the side that it is to be on. ``room``:
    what this host has free.
    `settle` and `plan` take an operator's word that the destination is gone as ``word``.
    """

    settle: Callable[..., Awaitable[list[dict[str, Any]]]] = _settle
    journalled_phase: Callable[[Path, str], tuple[str, str, str]] = _journalled_phase
    residency: Callable[[Path, int | None], Awaitable[dict[str, Any]]] = _residency
    check_host: Callable[[], Awaitable[list[Check]]] = _check_host
    check_guest: Callable[[str, Path, str | None], Awaitable[list[Check]]] = _check_guest
    room: Callable[[], Room] = _room
    check_tls: Callable[[Config], list[Check]] = _check_tls
    plan: Callable[..., Awaitable[list[dict[str, Any]]]] = _plan
    estimate: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]] = run_estimation


def hooks_for(encryption: Encryption) -> Hooks:
    """The real ones, which ask other agents over connections encrypted as the operator wants."""
    settle = partial(_settle, encryption=encryption)
    return Hooks(settle=settle, plan=partial(settle, only_plan=True))
