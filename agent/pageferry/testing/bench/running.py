"""One run: a guest is started, carried by one contender under the sampler's eyes, and verified."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from pageferry.testing.bench.figures import Span, figures_of, timelines_of
from pageferry.testing.bench.limits import copy_seconds, paging_seconds
from pageferry.testing.bench.orchestrating import orchestrated_carry
from pageferry.testing.bench.order import RunKey
from pageferry.testing.bench.results import Run
from pageferry.testing.bench.sampling import sampling
from pageferry.testing.bench.scenarios import (
    CONNECTIONS,
    PAGEFERRY,
    Limit,
    Scenario,
    known_parameters,
    qemu_mode,
)
from pageferry.testing.lab.baseline import qemu_carry
from pageferry.testing.lab.carrying import daemons_for
from pageferry.testing.lab.daemons import Network
from pageferry.testing.lab.guests import FreestandingGuest
from pageferry.testing.lab.links import Link, loopback_link, shaped_link
from pageferry.testing.lab.measuring import Outcome, measure
from pageferry.testing.lab.settled import settled_pair

LIMIT = "limit"
"""The contender that is no migration: what the machine allows."""

MIB = 1024 * 1024

Carry = Callable[[], Outcome]


def run_migration(scenario: Scenario, key: RunKey) -> Run:
    """Make one run. Raises LabError when it cannot be set up; needs swap for overcommitted ones."""
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(_network(scenario))
        plan = replace(scenario.plan, prefix=where.network.source_prefix)
        guest = stack.enter_context(
            settled_pair(
                plan,
                change=lambda machine: replace(machine, prefix=where.network.destination_prefix),
            )
        )
        assert guest.destination is not None
        carry = stack.enter_context(_contender(scenario, key.contender, guest, where.network))
        marks: list[float] = []

        def timed() -> Outcome:
            marks.append(time.monotonic())
            outcome = carry()
            marks.append(time.monotonic())
            return outcome

        with sampling(guest.source, guest.destination, where.interface) as sampler:
            found = measure(guest, timed, scenario.before_s, scenario.after_s)
        begin_s, end_s = marks
        span = Span(begin_s, end_s, last_s=end_s + scenario.after_s)
        return Run(
            scenario=key.scenario,
            contender=key.contender,
            number=key.number,
            completed=found.outcome.completed,
            error=found.outcome.error,
            memory_is_right=found.memory_is_right,
            figures=figures_of(found, guest, sampler, span),
            timelines=timelines_of(guest, sampler, span),
        )


def run_limit(scenario: Scenario, number: int) -> Run | None:
    """Measure what the machine allows for this guest; None where that is arithmetic alone."""
    plan = scenario.plan
    if scenario.limit is Limit.LINK:
        return None
    if scenario.limit is Limit.PAGING:
        assert plan.limit_mib is not None
        figures = paging_seconds(plan.cold_mib, plan.limit_mib)
        moved_mib = plan.cold_mib
    else:
        moved_mib = plan.cold_mib + plan.hot_mib
        figures = {"seconds": copy_seconds(moved_mib, CONNECTIONS)}
    total_s = figures.pop("seconds")
    figures |= {"total_s": total_s, "data_mib": moved_mib, "rate_mib_per_s": moved_mib / total_s}
    return Run(scenario.name, LIMIT, number, True, "", True, figures)


def _network(scenario: Scenario) -> contextlib.AbstractContextManager[Link]:
    if scenario.link_bits_per_s is None:
        return loopback_link()
    return shaped_link(scenario.link_bits_per_s)


@contextlib.contextmanager
def _contender(
    scenario: Scenario, contender: str, guest: FreestandingGuest, network: Network
) -> Iterator[Carry]:
    """What carries the guest, set up and waiting."""
    if contender != PAGEFERRY:
        uri = f"tcp:{network.destination_host}:{_free_port()}"
        yield qemu_carry(guest, qemu_mode(contender, scenario), uri, scenario.timeout_s)
        return
    parameters = known_parameters(scenario)
    with daemons_for(guest, network=network) as (source, destination):
        yield orchestrated_carry(source, destination, parameters, scenario.timeout_s)


def _free_port() -> int:
    # Free here, hence free in a namespace that has nothing in it yet.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
