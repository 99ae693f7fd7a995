"""How many bytes of cold pages may be in memory at any time while they are paged in and sent.

What is paged in is charged to the guest's own memory cgroup: too much of it, and the kernel pages
out the very working set that the window is to protect. Measured on a guest at its limit of 160
MiB: a window of 1 MiB left the hot pages' p99 at 1.2 to 1.7 times what it was, 8 MiB at 1.2, 64
MiB at 107.
"""

from __future__ import annotations

MIB = 1024 * 1024

SMALLEST_WINDOW_BYTES = 1 * MIB
"""Enough to read ahead, and harmless also in a cgroup that is at its limit."""

LARGEST_WINDOW_BYTES = 8 * MIB
"""More gains nothing: the swap device is busy with less."""

HEADROOM_SHARE = 8
"""The window takes an eighth of the room that is left: the guest goes on allocating beside it."""

GRANULE_BYTES = 64 * 1024

CAPPED_SHARE = 5
"""With a bandwidth cap, the window holds a fifth of a second's worth: what is in waits to be sent
all that time, and takes the guest's room meanwhile."""


def page_in_window_bytes(
    guest_headroom_bytes: int | None,
    host_headroom_bytes: int,
    configured_bytes: int | None,
    max_bandwidth: int = 0,
) -> int:
    """The window, in bytes.

    *guest_headroom_bytes* is what the guest's memory cgroup may still take, None where it has no
    limit; *host_headroom_bytes* what the host has available. Headrooms below 0 count as 0. What was
    configured is taken as it is, else the result is between 1 MiB and 8 MiB, in whole 64 KiB, and
    no smaller for more headroom. *max_bandwidth* (bytes per second, 0: none) lowers the upper end,
    not the lower.
    """
    if configured_bytes is not None:
        return configured_bytes
    headroom_bytes = host_headroom_bytes
    if guest_headroom_bytes is not None:
        headroom_bytes = min(headroom_bytes, guest_headroom_bytes)
    if max_bandwidth:
        headroom_bytes = min(headroom_bytes, max_bandwidth // CAPPED_SHARE * HEADROOM_SHARE)
    wanted_bytes = headroom_bytes // HEADROOM_SHARE // GRANULE_BYTES * GRANULE_BYTES
    return min(max(wanted_bytes, SMALLEST_WINDOW_BYTES), LARGEST_WINDOW_BYTES)
