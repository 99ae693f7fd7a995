"""docs/examples: what an evacuation decides, what it remembers, and how it ends."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from evacuation_plan import (
    Cost,
    Destination,
    Failure,
    Guest,
    Limits,
    Order,
    Plan,
    State,
    exit_status,
    in_order,
)
from evacuation_state import StateError, StateFile
from tests.support.daemon_bench import DaemonBench, running_daemon

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

MIB = 1 << 20


def cost(time_ms: int = 1000, resident: int = 100, swapped: int = 0, **values: bool) -> Cost:
    return Cost(time_ms, resident * MIB, swapped * MIB, resident * MIB, swapped * MIB, **values)


def plan_of(
    *guests: Guest, limits: Limits | None = None, destinations: tuple[Destination, ...] = ()
) -> Plan:
    return Plan(
        destinations or (Destination("b"),),
        limits or Limits(),
        guests={guest.name: guest for guest in guests},
    )


def test_cheapest_or_dearest_first_and_doubtful_ones_last() -> None:
    guests = [
        Guest("hopeless", cost=cost(1, converges=False)),
        Guest("unknown"),
        Guest("long", cost=cost(9000)),
        Guest("short", cost=cost(10)),
    ]
    names = [guest.name for guest in in_order(guests, Order.CHEAPEST)]
    assert names == ["short", "long", "unknown", "hopeless"]
    names = [guest.name for guest in in_order(guests, Order.DEAREST)]
    assert names == ["long", "short", "unknown", "hopeless"]


@given(
    guests=st.lists(
        st.tuples(st.sampled_from(list(State)), st.integers(0, 3), st.integers(0, 100)), max_size=12
    ),
    parallel=st.integers(1, 4),
    each=st.integers(1, 3),
    page_in=st.integers(0, 150),
)
def test_limits_hold_whatever_runs(
    guests: list[tuple[State, int, int]], parallel: int, each: int, page_in: int
) -> None:
    limits = Limits(parallel, each, page_in * MIB)
    destinations = tuple(Destination(str(number)) for number in range(4))
    plan = plan_of(
        *(
            Guest(str(number), state, cost(swapped=swapped), destination=str(where))
            for number, (state, where, swapped) in enumerate(guests)
        ),
        limits=limits,
        destinations=destinations,
    )
    before = len(plan.in_flight())
    started = plan.starts(0.0)
    assert len({name for name, _ in started}) == len(started)
    assert all(plan.guests[name].state is State.WAITING for name, _ in started)
    for name, address in started:
        guest = replace(plan.guests[name], state=State.STARTING, destination=address)
        plan.guests[name] = guest
    running = plan.in_flight()
    assert len(running) <= max(parallel, before)
    for _, address in started:
        assert sum(guest.destination == address for guest in running) <= each
    cold = [guest.cost.page_in_bytes for guest in running if guest.cost]
    if page_in and started and before == 0:
        assert sum(cold) <= max(page_in * MIB, *cold)


def test_room_is_kept_for_those_on_their_way() -> None:
    small = Destination("small", memory_bytes=150 * MIB, swap_bytes=0)
    plan = plan_of(
        Guest("one", cost=cost(1)),
        Guest("two", cost=cost(2)),
        limits=Limits(parallel=5, per_destination=5),
        destinations=(small,),
    )
    assert plan.starts(0.0) == [("one", "small")]
    plan.guests["one"] = replace(plan.guests["one"], state=State.COMPLETED, destination="small")
    plan.placed.add("one")
    assert plan.starts(0.0) == []
    assert "no room" in plan.why_stuck(plan.guests["two"])


def test_cold_memory_that_finds_no_swap_counts_as_memory() -> None:
    guest = Guest("g", cost=cost(resident=10, swapped=100))
    for swap_mib, found in ((100, [("g", "b")]), (20, [])):
        there = Destination("b", memory_bytes=50 * MIB, swap_bytes=swap_mib * MIB)
        assert plan_of(guest, destinations=(there,)).starts(0.0) == found


def test_roomiest_untried_destination_that_knows_the_guest_is_taken() -> None:
    destinations = (
        Destination("stranger", guests=frozenset(), memory_bytes=1 << 50),
        Destination("down", blocked="cannot be reached"),
        Destination("small", memory_bytes=200 * MIB),
        Destination("large", memory_bytes=300 * MIB),
    )
    guest = Guest("g", cost=cost())
    assert plan_of(guest, destinations=destinations).starts(0.0) == [("g", "large")]
    tried = replace(guest, failures=(Failure("large", "refused", "no"),))
    assert plan_of(tried, destinations=destinations).starts(0.0) == [("g", "small")]


def test_retries_wait_longer_each_time_and_end() -> None:
    plan = plan_of(limits=Limits(tries=3, retry_s=5.0))
    guest = Guest("g", State.MIGRATING, destination="b", migration_id="1" * 32)
    delays = []
    while guest.state is not State.GIVEN_UP:
        guest = plan.failed(replace(guest, destination="b"), "peer-lost", "gone", 100.0)
        delays.append(guest.not_before_s - 100.0)
    assert delays[:2] == [5.0, 10.0]
    assert len(guest.failures) == 3


def test_retry_is_not_due_early() -> None:
    plan = plan_of(Guest("g", not_before_s=50.0))
    assert plan.starts(49.0) == []
    assert plan.next_retry_s(49.0) == 50.0
    assert plan.starts(50.0) == [("g", "b")]
    assert plan.next_retry_s(50.0) is None


def test_refusal_goes_to_the_next_destination_at_once() -> None:
    plan = plan_of(destinations=(Destination("b"), Destination("c")))
    guest = plan.failed(Guest("g", destination="b"), "refused", "unknown guest", 100.0)
    assert (guest.state, guest.not_before_s) == (State.WAITING, 100.0)
    guest = plan.failed(replace(guest, destination="c"), "refused", "unknown guest", 100.0)
    assert guest.not_before_s > 100.0


@pytest.mark.parametrize("kind", ["cancelled", "configuration", "denied"])
def test_what_somebody_wanted_is_not_tried_again(kind: str) -> None:
    assert plan_of().failed(Guest("g"), kind, "so", 0.0).state is State.GIVEN_UP


def test_unknown_outcome_is_never_tried_again() -> None:
    plan = plan_of()
    guest = Guest("g", State.MIGRATING, destination="b", migration_id="ab" * 16)
    plan.guests["g"] = plan.failed(guest, "unknown", "lost in the commit", 0.0)
    assert plan.guests["g"].state is State.UNKNOWN
    assert plan.guests["g"].migration_id == guest.migration_id
    assert plan.starts(1e9) == []
    assert exit_status(plan.guests.values()) == 5


def test_exit_status_tells_what_is_left() -> None:
    assert exit_status([]) == 0
    assert exit_status([Guest("g", State.COMPLETED)]) == 0
    for state in set(State) - {State.COMPLETED, State.UNKNOWN}:
        assert exit_status([Guest("g", State.COMPLETED), Guest("h", state)]) == 1


def test_state_survives_as_it_was_written(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state", Path("/run/x.sock"))
    assert state.load() == {}
    guests = [
        Guest(
            "a", State.MIGRATING, cost(), "b", "id", "earlier", (Failure("b", "qemu", "é"),), 1.5
        ),
        Guest("b"),
    ]
    with state.locked():
        state.save(guests)
        assert list(state.load().values()) == guests
        with pytest.raises(StateError, match="another evacuation"), state.locked():
            pass


@pytest.mark.parametrize(
    "text", ["", "{}", '{"version": 9}', '{"version": 1, "source": "/other", "guests": []}']
)
def test_state_that_is_not_ours_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state").write_text(text)
    with pytest.raises(StateError, match="no state of this evacuation"):
        StateFile(tmp_path / "state", Path("/run/x.sock")).load()


async def run_example(bench: DaemonBench, *options: str) -> tuple[int, str]:
    folder = bench.config.control_socket.parent
    command = [
        *(sys.executable, "-W", "error", str(EXAMPLES / "evacuate.py"), *options),
        *("--socket", str(bench.config.control_socket), "--state", str(folder / "state.json")),
        *("--to", str(bench.config.listen), "--sample", "0.2", "--retry-delay", "0.01"),
    ]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    return done.returncode, done.stdout.decode() + done.stderr.decode()


async def test_guests_of_every_fate(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        for name in ("web-1", "web-2", "refuse-1", "die-1"):
            bench.guest(name)
        bench.hooks.answer = [
            {"role": "source", "settled": True, "phase": "failed", "message": "it runs here"}
        ]
        status, said = await run_example(bench, "--tries", "2", "web-*", "refuse-*", "die-*")
        assert status == 1, said
        assert "2 of 4 guests are away" in said
        assert said.count("given up; it runs here") == 2


async def test_unknown_outcome_is_asked_about_by_the_next_run(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        bench.guest("unknown-1")
        status, said = await run_example(bench)
        assert status == 5, said
        assert "start it nowhere" in said
        bench.hooks.answer = [
            {"role": "source", "settled": True, "phase": "completed", "message": "it is there"}
        ]
        status, said = await run_example(bench)
        assert status == 0, said
        assert "settled by recovery" in said
        assert sum(packet["type"] == "job" for packet in bench.packets()) == 1


async def test_daemon_that_stays_away_ends_it(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as bench:
        pass
    status, said = await run_example(bench, "--daemon-away", "0")
    assert status == 6, said


def imports() -> Iterator[str]:
    for path in EXAMPLES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield str(node.module)


def test_examples_use_the_control_client_only() -> None:
    ours = {name for name in imports() if name.split(".")[0] == "pageferry"}
    assert ours
    assert all(name.startswith("pageferry.control.") for name in ours), ours


def test_deciding_is_pure() -> None:
    tree = ast.parse((EXAMPLES / "evacuation_plan.py").read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "collections.abc", "dataclasses", "enum", "typing"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
