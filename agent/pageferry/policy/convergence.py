"""After each round: go on, throttle the guest, switch over, or give up.

The guest is handed over when the downtime to expect is within the limit, unless one more round will
make it much shorter. Where the rest no longer shrinks the guest's vCPUs are throttled in steps, if
the operator allows it. When that is at its end too, or the rounds are, the operator's choice
counts. So the rounds come to an end in any case but one: ``on-no-convergence=continue``, which asks
for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pageferry.model.blocks import PAGE_BYTES
from pageferry.model.parameters import MigrationParameters
from pageferry.policy.rounds import NS_PER_S, RoundHistory

SHORTENING_ROUNDS = 3
"""In so many of the first rounds the downtime may still be shortened: each takes half of it away at
least, or is not made, and then there is little left to be had."""

WORTHWHILE_MS = 10
"""Of downtime, for a round: a fault of the guest's for each page that it writes meanwhile."""

ROUND_NS = 10_000_000
"""What a round takes beside its sending: a scan, a drain, an acknowledgement, questions to QEMU."""


@dataclass(frozen=True, slots=True)
class GoOn:
    """Send another round, with so much taken from the vCPUs. None: no downtime can be told yet.

    ``at_once``: it is for what the guest writes while it is sent, so the next look follows without
    a pause.
    """

    expected_downtime_ms: int | None
    throttle_percent: int = 0
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class SwitchOver:
    """Stop the guest and hand it over. ``forced``: although it does not converge, as was asked."""

    expected_downtime_ms: int | None
    forced: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It does not converge. ``reason`` says why in numbers, ``advice`` what to do."""

    reason: str
    advice: str


Decision = GoOn | SwitchOver | GiveUp


def decide(
    history: RoundHistory,
    expected_ms: int | None,
    least_ms: int,
    parameters: MigrationParameters,
) -> Decision:
    """What to do after the last round of *history*.

    *expected_ms* is the downtime to expect, None where it cannot be told; *least_ms* what it would
    be with nothing to send. SwitchOver (not forced) when it is within ``downtime_limit_ms``, and
    also for a limit below *least_ms* once no more than that is expected: less cannot be had. In the
    first SHORTENING_ROUNDS though, GoOn where the next round will halve it, by WORTHWHILE_MS.
    GoOn never asks for a throttle beyond ``max_throttle``, or for any that is not allowed.
    """
    within_ms = max(parameters.downtime_limit_ms, least_ms)
    if history.rounds and expected_ms is not None and expected_ms <= within_ms:
        shortened = _can_be_shortened(history, parameters)
        return GoOn(expected_ms, at_once=True) if shortened else SwitchOver(expected_ms)
    throttle_percent = _throttle(history, parameters)
    if not _is_over(history, parameters):
        return GoOn(expected_ms, throttle_percent)
    if parameters.on_no_convergence == "switch-over":
        return SwitchOver(expected_ms, forced=True)
    if parameters.on_no_convergence == "continue":
        return GoOn(expected_ms, throttle_percent)
    return _give_up(history, expected_ms, least_ms, parameters)


def _can_be_shortened(history: RoundHistory, parameters: MigrationParameters) -> bool:
    """Whether the next round, by how much was written in the last, will leave much less to send."""
    last, pages_per_s = history.rounds[-1], history.pages_per_s
    if len(history.rounds) >= min(SHORTENING_ROUNDS, parameters.max_rounds):
        return False
    if not pages_per_s or not last.since_scan_ns or last.throttle_percent:
        return False
    next_ns = ROUND_NS + last.remaining_pages * NS_PER_S / pages_per_s
    next_pages = last.remaining_pages * next_ns / last.since_scan_ns
    saved_ms = (last.remaining_pages - next_pages) * 1000 / pages_per_s
    return saved_ms >= WORTHWHILE_MS and next_pages <= last.remaining_pages / 2


def _is_over(history: RoundHistory, parameters: MigrationParameters) -> bool:
    """Whether nothing is left to be tried: the rounds are used up, or the throttle is."""
    if len(history.rounds) >= parameters.max_rounds:
        return True
    throttled_out = history.throttle_percent >= parameters.max_throttle
    return parameters.auto_converge and throttled_out and history.has_stalled


def _throttle(history: RoundHistory, parameters: MigrationParameters) -> int:
    """What to take from the vCPUs in the next round, in percent: no less than now."""
    if not parameters.auto_converge:
        return 0
    percent = history.throttle_percent
    if history.has_stalled:
        percent = (
            percent + parameters.throttle_increment if percent else parameters.throttle_initial
        )
    return min(percent, parameters.max_throttle)


def _give_up(
    history: RoundHistory, expected_ms: int | None, least_ms: int, parameters: MigrationParameters
) -> GiveUp:
    remaining_mib = history.remaining_pages * PAGE_BYTES / 2**20
    rate_mib = (history.pages_per_s or 0) * PAGE_BYTES / 2**20
    downtime = "a downtime that cannot be told" if expected_ms is None else f"{expected_ms} ms"
    limit_ms = parameters.downtime_limit_ms
    wanted_ms = limit_ms if expected_ms is None else expected_ms * 5 // 4
    throttled = (
        f" with {history.throttle_percent} % taken from its vCPUs"
        if history.throttle_percent
        else ""
    )
    rest = f"{remaining_mib:.1f} MiB are left, which at {rate_mib:.0f} MiB/s means {downtime}"
    sends_ms = None if expected_ms is None else expected_ms - least_ms
    if least_ms > limit_ms and sends_ms is not None and sends_ms <= limit_ms:
        why = "the stop alone takes longer than allowed"
        rest += (
            f", {least_ms} ms of it without anything to send, as in this host's last switchovers"
        )
    else:
        why = "the guest writes faster than it can be sent"
    helps = [f"set downtime-limit to {wanted_ms} or more"]
    if not parameters.auto_converge:
        helps.append("allow the guest to be throttled (auto-converge)")
    if parameters.max_bandwidth:
        helps.append(f"raise max-bandwidth ({parameters.max_bandwidth / 2**20:.0f} MiB/s)")
    helps.append("take the downtime that it needs (on-no-convergence=switch-over)")
    return GiveUp(
        reason=(
            f"{why}: after {len(history.rounds)} rounds{throttled} {rest}"
            f" (downtime-limit {limit_ms} ms)"
        ),
        advice=", ".join(helps) + ", or try again when the guest is less busy",
    )
