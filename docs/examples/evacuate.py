#!/usr/bin/env python3
"""Carry the guests of this host to others: many at a time, in order of cost, with retries.

    evacuate.py --to host-b --to host-c=/run/host-c.sock --state /var/lib/evacuation.json

Run it again with the same ``--state`` after a crash, a kill or a reboot of this program: it goes on
where it was. The migrations are the daemon's, and go on meanwhile. A destination's control socket,
where it can be reached (``ssh -L /run/host-c.sock:/run/pageferry/control.sock host-c``), tells what
that host has free and which guests it knows; without it guests are offered and may be refused.

An example of driving pageferry by `pageferry.control.client`: nothing else of pageferry is used.
`evacuation_plan` decides, `evacuation_state` remembers, `evacuation_daemons` asks; this does.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from evacuation_daemons import DAEMON_AWAY_S, Daemon, look_at, reachable, settled_phase
from evacuation_plan import (
    IN_FLIGHT,
    Cost,
    Guest,
    Limits,
    Order,
    Plan,
    State,
    exit_status,
    in_order,
)
from evacuation_state import StateError, StateFile
from pageferry.control.client import (
    DEFAULT_SOCKET,
    ControlClient,
    DaemonUnreachableError,
)
from pageferry.control.errors import CommandError
from pageferry.control.info import FINAL_STATUSES, GuestInfo, MigrationInfo

MIB: Final = 1 << 20

EXIT_FAILED: Final = 1
EXIT_UNREACHABLE: Final = 6
"""As of the command line's verbs."""


class Evacuation:
    """Does what the plan says, and writes down each step before it is taken."""

    def __init__(
        self, daemon: Daemon, plan: Plan, state: StateFile, parameters: dict[str, Any]
    ) -> None:
        self._daemon = daemon
        self._plan = plan
        self._state = state
        self._parameters = parameters
        self._changed = trio.Event()
        self._stopping = False

    def stop(self) -> None:
        """Start no more; what is under way is waited for."""
        self._stopping = True
        self._changed.set()

    async def run(self) -> None:
        """Until no guest is under way and none can be started."""
        async with trio.open_nursery() as nursery:
            for guest in self._plan.in_flight():
                say(guest.name, f"going on: {guest.state} to {guest.destination}")
                nursery.start_soon(self._carry, guest.name)
            while True:
                self._changed = trio.Event()
                now_s = time.time()
                for name, address in [] if self._stopping else self._plan.starts(now_s):
                    await self._begin(name, address)
                    nursery.start_soon(self._carry, name)
                retry_s = None if self._stopping else self._plan.next_retry_s(now_s)
                if retry_s is None and not self._plan.in_flight():
                    return
                with trio.move_on_after(math.inf if retry_s is None else retry_s - now_s):
                    await self._changed.wait()

    async def _begin(self, name: str, address: str) -> None:
        """Write down what is about to be done."""
        last = await self._daemon.last_migration(name)
        earlier_id = last.migration_id if last is not None else ""
        self._plan.placed.add(name)
        self._note(
            replace(
                self._plan.guests[name],
                state=State.STARTING,
                destination=address,
                earlier_id=earlier_id,
            )
        )

    async def _carry(self, name: str) -> None:
        """One try, from STARTING or MIGRATING to what it came to."""
        guest = self._plan.guests[name]
        try:
            if guest.state is State.STARTING:
                migration_id = await self._start(guest)
                guest = replace(guest, state=State.MIGRATING, migration_id=migration_id)
                self._note(guest)
                say(name, f"to {guest.destination}, {migration_id}")
            info = await self._daemon.wait(name, guest.migration_id)
        except CommandError as error:
            kind = str(error.report.get("kind", "failed"))
            self._conclude_failure(guest, kind, str(error))
        else:
            self._conclude(guest, info)
        self._changed.set()

    async def _start(self, guest: Guest) -> str:
        """Ask for the migration, unless that was done before a crash, or before the daemon went
        away with the answer: a guest is asked to move only once. Returns its ID."""

        async def start(client: ControlClient) -> str:
            last = await self._daemon.last_migration(guest.name)
            if last is not None and last.migration_id != guest.earlier_id:
                return last.migration_id
            return await client.migrate(guest.name, guest.destination, parameters=self._parameters)

        return await self._daemon.ask(start)

    def _conclude(self, guest: Guest, info: MigrationInfo | None) -> None:
        if info is None:
            self._conclude_failure(
                guest, "unknown", "the daemon knows nothing of this migration any more"
            )
        elif info.status == "completed":
            self._note(replace(guest, state=State.COMPLETED, note=outcome(info)))
            say(guest.name, f"is on {guest.destination}: {outcome(info)}")
        else:
            fallback = "cancelled" if info.status == "cancelled" else "failed"
            kind = str(info.error.get("kind", fallback))
            self._conclude_failure(guest, kind, str(info.error.get("message", info.status)))

    def _conclude_failure(self, guest: Guest, kind: str, message: str) -> None:
        now_s = time.time()
        after = self._plan.failed(guest, kind, message, now_s)
        if after.state is not State.UNKNOWN:
            self._plan.placed.discard(guest.name)
        self._note(after)
        then = {
            State.WAITING: f"again in {max(0.0, after.not_before_s - now_s):.0f} s",
            State.GIVEN_UP: "given up; it runs here",
            State.UNKNOWN: f"start it nowhere; pageferry recover {after.migration_id}",
        }[after.state]
        say(guest.name, f"{kind}: {message}; {then}")

    def _note(self, guest: Guest) -> None:
        self._plan.guests[guest.name] = guest
        self._state.save(self._plan.guests.values())


async def choose_guests(daemon: Daemon, patterns: Sequence[str], known: dict[str, Guest]) -> None:
    """Add to *known* the guests that fit, with those that are on their way already."""
    for each in await daemon.ask(lambda client: client.query_guests()):
        fits = any(fnmatch.fnmatchcase(each.name, pattern) for pattern in patterns)
        if each.name in known or not fits or not each.present:
            continue
        is_source = each.raw.get("role") == "source"
        if is_source and each.status == "completed":
            say(each.name, "has left before")
            continue
        known[each.name] = await _as_found(daemon, each, is_source)


async def _as_found(daemon: Daemon, found: GuestInfo, is_source: bool) -> Guest:
    if not is_source or found.status in FINAL_STATUSES:
        return Guest(found.name)
    info = await daemon.ask(lambda client: client.query_migrate(guest=found.name))
    return Guest(
        found.name,
        state=State.MIGRATING,
        destination=info.destination,
        migration_id=info.migration_id,
    )


async def ask_about_unknown(daemon: Daemon, guests: dict[str, Guest]) -> None:
    """Take up again guests of which it was not known which host has them, and is known now."""
    for guest in list(guests.values()):
        if guest.state is not State.UNKNOWN:
            continue
        phase = await daemon.ask(partial(settled_phase, guest.migration_id))
        if phase == "completed":
            guests[guest.name] = replace(guest, state=State.COMPLETED, note="settled by recovery")
        elif phase in ("failed", "cancelled"):
            again = replace(guest, state=State.WAITING, migration_id="", destination="", note="")
            guests[guest.name] = again
        say(guest.name, f"its outcome was unknown; now {phase or 'as before'}")


async def estimate_all(daemon: Daemon, plan: Plan, sample_s: float) -> None:
    """Have the cost of each guest that has none yet estimated, some at a time."""
    limiter = trio.CapacityLimiter(plan.limits.parallel)

    async def estimate(guest: Guest) -> None:
        async with limiter:
            plan.guests[guest.name] = await _with_cost(daemon, guest, sample_s)

    async with trio.open_nursery() as nursery:
        for guest in plan.guests.values():
            if guest.cost is None and guest.state is State.WAITING:
                nursery.start_soon(estimate, guest)


async def _with_cost(daemon: Daemon, guest: Guest, sample_s: float) -> Guest:
    try:
        found = await daemon.ask(lambda client: client.estimate(guest.name, sample_s=sample_s))
    except CommandError as error:
        if error.report.get("kind") == "refused":
            say(guest.name, f"cannot be carried: {error}")
            return replace(guest, state=State.GIVEN_UP, note=str(error))
        say(guest.name, f"no estimate: {error}")
        return guest
    cost = Cost(
        total_time_ms=found.total_time_ms,
        transfer_bytes=found.transfer_bytes,
        page_in_bytes=found.page_in_bytes,
        resident_bytes=found.resident_bytes,
        swapped_bytes=found.swapped_bytes,
        converges=found.converges,
    )
    return replace(guest, cost=cost)


def outcome(info: MigrationInfo) -> str:
    """A completed migration in a few words."""
    downtime = "?" if info.downtime_ms is None else f"{info.downtime_ms:.0f}"
    return f"{info.total_time_ms / 1000:.1f} s, downtime {downtime} ms"


def say(name: str, what: str) -> None:
    """One line for the operator, at once."""
    print(f"{time.strftime('%H:%M:%S')} {name}: {what}", flush=True)


def report(plan: Plan) -> None:
    """How things stand: one line for each guest, in the plan's order."""
    width = max((len(name) for name in plan.guests), default=0)
    for guest in in_order(plan.guests.values(), plan.order):
        note = guest.note
        if guest.state is State.WAITING:
            note = note or plan.why_stuck(guest)
        if guest.state is State.UNKNOWN:
            note = f"{note}; start it nowhere; pageferry recover {guest.migration_id}"
        cost = guest.cost or Cost()
        print(
            f"{guest.name:<{width}}  {guest.state:<9}  {guest.destination or '-':<21} "
            f" {cost.transfer_bytes // MIB:>8} MiB to send, {cost.page_in_bytes // MIB} MiB cold"
            f"  {note}"
        )
    for destination in plan.destinations:
        if destination.blocked:
            print(f"{destination.address} was not used: {destination.blocked}")
    done = sum(guest.state is State.COMPLETED for guest in plan.guests.values())
    print(f"{done} of {len(plan.guests)} guests are away", flush=True)


@asynccontextmanager
async def stopped_by_signals(evacuation: Evacuation) -> AsyncIterator[None]:
    """The first SIGINT or SIGTERM: start no more, and wait. The second: leave; what runs is the
    daemon's, and goes on."""

    async def obey(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            await anext(signals)
            print("starting no more; waiting for what is under way", flush=True)
            evacuation.stop()
            await anext(signals)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey, nursery.cancel_scope)
        yield
        nursery.cancel_scope.cancel()


async def evacuate(options: argparse.Namespace, state: StateFile) -> int:
    """All of it, with the state locked. Returns the exit status."""
    guests = state.load()
    daemon = Daemon(options.socket, options.daemon_away)
    destinations = []
    for specification in options.to:
        destinations.append(await reachable(daemon, await look_at(specification)))
    limits = Limits(
        parallel=options.parallel,
        per_destination=options.per_destination,
        page_in_bytes=options.page_in_limit * MIB,
        tries=options.tries,
        retry_s=options.retry_delay,
    )
    plan = Plan(destinations, limits, Order(options.order), guests)
    await ask_about_unknown(daemon, guests)
    await choose_guests(daemon, options.guests or ["*"], guests)
    await estimate_all(daemon, plan, options.sample)
    plan.placed = {guest.name for guest in guests.values() if guest.state in IN_FLIGHT}
    if options.dry_run:
        for name, address in plan.starts(time.time()):
            say(name, f"would go to {address} first")
        report(plan)
        return 0
    state.save(guests.values())
    evacuation = Evacuation(daemon, plan, state, dict(options.parameters))
    async with stopped_by_signals(evacuation):
        await evacuation.run()
    report(plan)
    return exit_status(guests.values())


def parameter(text: str) -> tuple[str, Any]:
    """``downtime-limit=100``, as in `pageferry set`."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write KEY=VALUE")
    if value in ("true", "false"):
        return key, value == "true"
    try:
        return key, int(value)
    except ValueError:
        return key, value


def at_least_one(text: str) -> int:
    """A number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        description="Carry the guests of this host to others.",
        epilog="exit status: 0 all are away; 1 some are left, running here; 2 wrong usage; 5 of one"
        " it is not known which host has it; 6 the daemon cannot be reached",
    )
    made.add_argument("guests", nargs="*", help="names, also as in web*; all unless given")
    add = made.add_argument
    add("--to", action="append", required=True, metavar="ADDRESS[=SOCKET]", help="a destination")
    add("--state", type=Path, required=True, help="where to remember how far it is")
    add("--socket", type=Path, default=DEFAULT_SOCKET, help="of this host's daemon")
    add("--order", choices=[*Order], default=Order.CHEAPEST, help="which guests go first")
    add("--parallel", type=at_least_one, default=2, help="guests at a time (%(default)s)")
    add("--per-destination", type=at_least_one, default=2, help="the same for each of them")
    add("--page-in-limit", type=int, default=0, metavar="MIB", help="cold memory at a time")
    add("--tries", type=at_least_one, default=3, help="for each guest (%(default)s)")
    add("--retry-delay", type=float, default=5.0, metavar="S", help="doubled each time")
    add("--sample", type=float, default=2.0, metavar="S", help="to estimate each guest for")
    add("--daemon-away", type=float, default=DAEMON_AWAY_S, metavar="S", help="how long to wait")
    add(
        "--set", dest="parameters", type=parameter, action="append", default=[], metavar="KEY=VALUE"
    )
    add("--dry-run", action="store_true", help="estimate and show the plan only")
    return made


def main() -> int:
    """The command."""
    options = parser().parse_args()
    state = StateFile(options.state.absolute(), options.socket)
    try:
        with state.locked():
            return trio.run(evacuate, options, state)
    except (DaemonUnreachableError, StateError, CommandError, OSError, ExceptionGroup) as error:
        return told(first_of(error), options)


def first_of(error: BaseException) -> BaseException:
    """The first error of a nursery's group; any other error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def told(error: BaseException, options: argparse.Namespace) -> int:
    """Say what ended the evacuation before its time. Raises what is a bug of ours."""
    if isinstance(error, DaemonUnreachableError):
        print(f"{error}; {error.advice}; then run this again", file=sys.stderr)
        return EXIT_UNREACHABLE
    if isinstance(error, OSError):
        print(f"{options.state}: {error.strerror}; make room, then run this again", file=sys.stderr)
        return EXIT_FAILED
    if isinstance(error, StateError | CommandError):
        print(error, file=sys.stderr)
        return EXIT_FAILED
    raise error


if __name__ == "__main__":
    sys.exit(main())
