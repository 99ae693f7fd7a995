"""One step of a soak: migrate, break something, have it settled, and look whether all is right."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.phase import SourcePhase
from pageferry.testing.lab.cleanup import LabError
from pageferry.testing.lab.qemus import LabQemu
from pageferry.testing.soak.judging import (
    Finding,
    Kind,
    overlaps,
    owners_wrong,
    residency_wrong,
    running_intervals,
    speakers_wrong,
)
from pageferry.testing.soak.leaks import leaks
from pageferry.testing.soak.plan import HOLDING, Fault, Settling, Step
from pageferry.testing.soak.stage import Stage
from pageferry.testing.soak.striking import Strike
from pageferry.testing.soak.travellers import HOSTS, Traveller

SETTLE_TIMEOUT_S = 180.0
"""A worker asks for half a minute what became of its commit, and a daemon asks once a minute at
least."""

BEGIN_TIMEOUT_S = 20.0

OVER = frozenset(
    each.value for each in (SourcePhase.COMPLETED, SourcePhase.CANCELLED, SourcePhase.FAILED)
)


@dataclass(slots=True)
class Outcome:
    """What came of a step. `operator`: what `pageferry recover` said, where it was run."""

    migration_id: str = ""
    struck: bool = False
    carried: bool = False
    took_s: float = 0.0
    said: str = ""
    operator: str = ""
    findings: list[Finding] = field(default_factory=list)


def take_step(stage: Stage, step: Step) -> Outcome:
    """Do it. Never raises LabError: what goes wrong is a finding."""
    outcome = Outcome()
    began_s = time.monotonic()
    try:
        _Stepping(stage, step, outcome).run()
    except LabError as error:
        outcome.findings.append(Finding(Kind.LOST, str(error)))
    outcome.took_s = time.monotonic() - began_s
    return outcome


class _Stepping:
    def __init__(self, stage: Stage, step: Step, outcome: Outcome) -> None:
        self._stage = stage
        self._step = step
        self._outcome = outcome
        self._traveller: Traveller = stage.travellers[step.guest]
        self._guest = self._traveller.guest
        self._here = self._guest.source.name
        self._there = next(each for each in HOSTS if each != self._here)

    def run(self) -> None:
        source, destination = self._guest.source, self._waiting()
        speakers = len(self._guest.serial.speakers)
        for qemu in (source, destination):
            qemu.monitor.take_events()
        self._traveller.begin_step()
        self._outcome.migration_id = self._start()
        self._break(destination)
        self._settle()
        self._judge(source, destination, speakers)
        if self._outcome.findings:
            return
        if self._outcome.carried:
            self._guest.turn_round()
        elif destination.status() != "inmigrate":
            self._guest.retire(destination)
        self._outcome.findings += self._traveller.check()

    def _waiting(self) -> LabQemu:
        """The destination's QEMU: the one that was left waiting, or a new one."""
        if self._guest.destination is not None:
            return self._guest.destination
        return self._guest.start_destination(self._traveller.change(self._there), self._there)

    def _start(self) -> str:
        deadline_s = time.monotonic() + BEGIN_TIMEOUT_S
        while True:
            try:
                told = self._stage.ask(
                    self._here,
                    "migrate",
                    guest=self._step.guest,
                    uri=self._stage.crossings[self._there].address,
                    parameters=dict(self._step.options),
                )
                return str(told["migration-id"])
            except LabError:
                # The daemon may not have seen yet that the last one is settled.
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.2)

    def _break(self, destination: LabQemu) -> None:
        step, migration_id = self._step, self._outcome.migration_id
        if step.fault is Fault.NONE:
            return
        strike = Strike(self._stage, step.fault, self._here, self._there, migration_id, destination)
        try:
            over = self._over()
            self._outcome.struck = strike.wait(step.moment, over) and strike.until_struck(over)
        finally:
            strike.mend(step.hold_s if self._outcome.struck and step.fault in HOLDING else 0.0)

    def _over(self) -> Callable[[], bool]:
        migration_id = self._outcome.migration_id

        def over() -> bool:
            return self._stage.phase(self._here, migration_id, "source") in OVER

        return over

    def _settle(self) -> None:
        migration_id = self._outcome.migration_id
        host = {
            Settling.DAEMONS: None,
            Settling.RECOVER_AT_SOURCE: self._here,
            Settling.RECOVER_AT_DESTINATION: self._there,
        }[self._step.settling]
        if host is not None and self._outcome.struck and self._step.fault is not Fault.CANCEL:
            done = self._stage.daemons[host].run_cli("recover", "--yes", migration_id)
            self._outcome.operator = done.stdout.strip() or done.stderr.strip()
        left = self._stage.wait_settled(migration_id, SETTLE_TIMEOUT_S)
        if left:
            self._outcome.findings.append(
                Finding(Kind.LOST, f"not settled within {SETTLE_TIMEOUT_S:g} s: {left}")
            )

    def _judge(self, source: LabQemu, destination: LabQemu, speakers: int) -> None:
        outcome = self._outcome
        # Residency first, before anything moves again.
        here, there = source.residency(), destination.residency()
        states = {f"{qemu.name} QEMU": qemu.status() for qemu in (source, destination)}
        outcome.findings += owners_wrong(states)
        outcome.carried = states[f"{destination.name} QEMU"] == "running"
        if self._step.fault is Fault.NONE and not outcome.carried:
            outcome.findings.append(Finding(Kind.FAILED, f"undisturbed, and {self._error()}"))
        ran_here = running_intervals(source.monitor.take_events(), runs_from_us=0)
        ran_there = running_intervals(destination.monitor.take_events(), runs_from_us=None)
        outcome.findings += overlaps(ran_here, ran_there)
        outcome.findings += speakers_wrong(
            self._guest.serial.speakers[speakers:],
            source.serial_number,
            destination.serial_number,
        )
        if outcome.carried:
            outcome.findings += residency_wrong(here, there, self._zero_bytes(here.resident_bytes))
        self._compare_with_word()
        outcome.findings += leaks(self._stage, [source, destination])

    def _info(self) -> dict[str, Any]:
        """What the source says of the migration. LabError when nobody answers."""
        migration_id = self._outcome.migration_id
        info: dict[str, Any] = self._stage.ask(
            self._here, "query-migrate", migration_id=migration_id
        )
        return info

    def _error(self) -> str:
        """What the source says of why it did not end well."""
        try:
            info = self._info()
        except LabError as error:
            return str(error)
        return f"{info.get('status')}: {info.get('error-desc')}"

    def _zero_bytes(self, destination_may_lack_bytes: int) -> int:
        """What was sent as zeros, as the source says; all of it may be, when nobody says."""
        try:
            info = self._info()
        except LabError:  # a daemon that has been started since does not know of it any more
            return destination_may_lack_bytes
        return int((info.get("ram") or {}).get("duplicate", 0)) * PAGE_BYTES

    def _compare_with_word(self) -> None:
        """The source's journal must say where the guest is."""
        phase = self._stage.phase(self._here, self._outcome.migration_id, "source")
        self._outcome.said = str(phase)
        if (phase == SourcePhase.COMPLETED.value) != self._outcome.carried:
            where = self._there if self._outcome.carried else self._here
            self._outcome.findings.append(
                Finding(Kind.LOST, f"the guest is on {where}, and the source's journal: {phase}")
            )
