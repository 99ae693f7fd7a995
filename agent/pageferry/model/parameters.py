"""What an operator may set for one migration, with QAPI's names where a name means the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pageferry.model.errors import RefusedError

RESIDENCY_WAYS = ("pagemap", "cachestat", "mincore")
"""The ways to learn who is swapped, best first."""

MAX_DOWNTIME_LIMIT_MS = 2_000_000
"""As QEMU limits its own downtime-limit: 2000 seconds."""

MIN_WINDOW_BYTES = 64 * 1024
"""Below one read-ahead the page-in goes page by page."""

MAX_WINDOW_BYTES = 1024**3
"""An operator may widen the window beyond what is chosen by itself, but not without end."""

MAX_CHANNELS = 64
"""As the wire limits them."""

COMPRESSION_MODES = ("off", "auto", "on")

MIN_COMPRESSION_LEVEL, MAX_COMPRESSION_LEVEL = -7, 19
"""zstd's levels. Below 1 they are faster and pack less; beyond 19 it takes memory by the GiB."""

MIN_BANDWIDTH_BYTES_PER_S = 64 * 1024
"""Less is a typing error: a guest of 1 GiB would take five hours. 0 stands for no limit."""

MAX_BANDWIDTH_BYTES_PER_S = 1 << 50

MAX_THROTTLE_PERCENT = 99
"""As QEMU: a guest that gets nothing at all cannot be told from one that hangs."""

NO_CONVERGENCE_CHOICES = ("give-up", "continue", "switch-over")
"""What to do about a guest that writes faster than it can be sent, when all else has been tried."""

KEYS = {
    "downtime_limit_ms": "downtime-limit",
    "window_bytes": "page-in-window",
    "channels": "channels",
    "max_rounds": "max-rounds",
    "residency_way": "residency-way",
    "verify": "verify",
    "timeout_s": "timeout",
    "compression": "compression",
    "compression_level": "compression-level",
    "max_bandwidth": "max-bandwidth",
    "max_swap_bandwidth": "max-swap-bandwidth",
    "swap_pacing": "swap-pacing",
    "auto_converge": "auto-converge",
    "throttle_initial": "cpu-throttle-initial",
    "throttle_increment": "cpu-throttle-increment",
    "max_throttle": "max-cpu-throttle",
    "on_no_convergence": "on-no-convergence",
}
"""The key of each attribute on the control socket and in the configuration."""

ZERO_IS_NONE = frozenset({"page-in-window", "timeout"})
"""Keys that 0 sets back: what JSON cannot leave out of a command that changes it."""

CHANGEABLE = frozenset(KEYS.values()) - {"channels", "residency-way"}
"""Keys that may be set while a migration runs: the rest is settled with the other agent first."""


@dataclass(frozen=True, slots=True)
class MigrationParameters:
    """Settings of one migration. Creating one with a value out of range raises RefusedError.

    ``window_bytes`` None: chosen by the headroom. ``residency_way`` None: the best that the probes
    find. ``timeout_s`` None: the migration may take as long as it needs. ``max_bandwidth`` (page
    contents and their heads on all channels) and ``max_swap_bandwidth`` (paged in; as much is paged
    out again) in bytes per second, 0: no limit. ``swap_pacing``: page in less while that slows down
    what others on the host read. ``auto_converge`` allows the guest's vCPUs to be throttled, in
    steps of percent from ``throttle_initial`` by ``throttle_increment`` up to ``max_throttle``.
    """

    downtime_limit_ms: int = 300
    window_bytes: int | None = None
    channels: int = 2
    max_rounds: int = 30
    residency_way: str | None = None
    verify: bool = False
    timeout_s: float | None = None
    compression: str = "off"
    compression_level: int = 1
    max_bandwidth: int = 0
    max_swap_bandwidth: int = 0
    swap_pacing: bool = True
    auto_converge: bool = False
    throttle_initial: int = 20
    throttle_increment: int = 10
    max_throttle: int = MAX_THROTTLE_PERCENT
    on_no_convergence: str = "give-up"

    def __post_init__(self) -> None:
        _check_whole("downtime_limit_ms", self.downtime_limit_ms, 1, MAX_DOWNTIME_LIMIT_MS)
        if self.window_bytes is not None:
            _check_whole("window_bytes", self.window_bytes, MIN_WINDOW_BYTES, MAX_WINDOW_BYTES)
        _check_whole("channels", self.channels, 1, MAX_CHANNELS)
        _check_whole("max_rounds", self.max_rounds, 1, 10_000)
        if self.residency_way is not None:
            _check_choice("residency_way", self.residency_way, RESIDENCY_WAYS)
        if self.timeout_s is not None:
            _check_timeout(self.timeout_s)
        if self.compression not in COMPRESSION_MODES:
            raise _refused(
                "compression", self.compression, f"one of {', '.join(COMPRESSION_MODES)}"
            )
        _check_whole(
            "compression_level",
            self.compression_level,
            MIN_COMPRESSION_LEVEL,
            MAX_COMPRESSION_LEVEL,
        )
        for attribute in ("verify", "swap_pacing", "auto_converge"):
            if not isinstance(getattr(self, attribute), bool):
                raise _refused(attribute, getattr(self, attribute), "true or false")
        for attribute in ("max_bandwidth", "max_swap_bandwidth"):
            _check_bandwidth(attribute, getattr(self, attribute))
        for attribute in ("throttle_initial", "throttle_increment", "max_throttle"):
            _check_whole(attribute, getattr(self, attribute), 1, MAX_THROTTLE_PERCENT)
        _check_choice("on_no_convergence", self.on_no_convergence, NO_CONVERGENCE_CHOICES)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MigrationParameters:
        """The parameters with these keys set. Raises RefusedError for unknown keys and bad
        values.
        """
        return cls().updated(values)

    def updated(self, values: Mapping[str, Any]) -> MigrationParameters:
        """A copy in which these keys are set anew; None sets a key back, and 0 does for those that
        are otherwise left out. Raises as from_dict does.
        """
        attributes = {key: attribute for attribute, key in KEYS.items()}
        defaults = {field.name: field.default for field in fields(self)}
        changes: dict[str, Any] = {}
        for key, value in values.items():
            if key not in attributes:
                raise RefusedError(
                    f"there is no migration parameter {key!r}",
                    advice=f"use some of {', '.join(KEYS.values())}",
                )
            attribute = attributes[key]
            is_left_out = value is None or (
                key in ZERO_IS_NONE and type(value) in (int, float) and value == 0
            )
            changes[attribute] = defaults[attribute] if is_left_out else value
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All that is set, by its key; what is left to be chosen (None) is left out."""
        values = {key: getattr(self, attribute) for attribute, key in KEYS.items()}
        return {key: value for key, value in values.items() if value is not None}


def check_changeable(values: Mapping[str, Any]) -> None:
    """Raise RefusedError when one of these keys cannot be set while a migration runs."""
    for key in values:
        if key in KEYS.values() and key not in CHANGEABLE:
            raise RefusedError(
                f"{key} cannot be changed while a migration runs",
                guest_state="as before; the migration goes on",
                advice=f"cancel and start anew with {key}; what can be changed is"
                f" {', '.join(sorted(CHANGEABLE))}",
            )


def _check_whole(attribute: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise _refused(attribute, value, f"a whole number from {least} to {most}")


def _check_bandwidth(attribute: str, value: object) -> None:
    if type(value) is int and value == 0:
        return
    least, most = MIN_BANDWIDTH_BYTES_PER_S, MAX_BANDWIDTH_BYTES_PER_S
    if type(value) is not int or not least <= value <= most:
        raise _refused(
            attribute, value, f"bytes per second from {least} to {most}, or 0 for no limit"
        )


def _check_choice(attribute: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _refused(attribute, value, f"one of {', '.join(choices)}")


def _check_timeout(timeout_s: object) -> None:
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not is_number or not 0 < float(timeout_s) < float("inf"):  # type: ignore[arg-type]
        raise _refused("timeout_s", timeout_s, "a number of seconds above 0, or 0 for no limit")


def _refused(attribute: str, value: object, wanted: str) -> RefusedError:
    key = KEYS[attribute]
    return RefusedError(f"{key} is {value!r}", advice=f"set {key} to {wanted}")
