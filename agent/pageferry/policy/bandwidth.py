"""A cap on bandwidth without bursts: when the next bytes may go.

A token bucket in its virtual-time form: instead of tokens, the time is kept at which all that was
let through so far would have passed at exactly the rate. What is to go next may go at that time.
"""

from __future__ import annotations

from pageferry.model.blocks import PAGE_BYTES

NS_PER_S = 1_000_000_000

SLACK_NS = 10_000_000
"""How far behind the rate may be caught up. A sleep overshoots by 0.1 to 1 ms, and without catching
up that would be lost from the rate each time; more than 10 ms worth would be a burst."""

STEP_NS = 2_000_000
"""What goes at once should take about so long at the rate: 2 % of a tenth of a second, and still 20
times what handing out a batch costs (0.1 ms)."""


class TokenBucket:
    """Pure: time is an argument, and must not run backwards. Not for several threads at once."""

    def __init__(self, bytes_per_s: int) -> None:
        """*bytes_per_s* 0: no limit."""
        self._bytes_per_s = bytes_per_s
        self._free_ns: int | None = None

    @property
    def bytes_per_s(self) -> int:
        """The rate; 0 without a limit."""
        return self._bytes_per_s

    def set_rate(self, bytes_per_s: int, now_ns: int) -> None:
        """From now on another rate. What was let through ahead of time is paid at the new one."""
        if self._free_ns is not None and self._free_ns > now_ns and self._bytes_per_s:
            debt_bytes = (self._free_ns - now_ns) * self._bytes_per_s // NS_PER_S
            owed_ns = debt_bytes * NS_PER_S // bytes_per_s if bytes_per_s else 0
            self._free_ns = now_ns + owed_ns
        self._bytes_per_s = bytes_per_s

    def take(self, length_bytes: int, now_ns: int) -> int:
        """Let *length_bytes* through; returns after how many ns they may go, 0: at once.

        In any stretch of time the bytes let through exceed the rate by no more than SLACK_NS worth
        and what is taken at once.
        """
        if not self._bytes_per_s:
            return 0
        earliest_ns = now_ns - SLACK_NS if self._free_ns is not None else now_ns
        start_ns = max(self._free_ns or 0, earliest_ns)
        self._free_ns = start_ns + length_bytes * NS_PER_S // self._bytes_per_s
        return max(0, start_ns - now_ns)

    def wait_ns(self, now_ns: int) -> int:
        """After how many ns something may go, without letting it through."""
        if not self._bytes_per_s or self._free_ns is None:
            return 0
        return max(0, self._free_ns - now_ns)


def smooth_batch_pages(bytes_per_s: int, most_pages: int) -> int:
    """Pages that go at once so that the rate is smooth: 1 to *most_pages*, all without a limit."""
    if not bytes_per_s:
        return most_pages
    pages = bytes_per_s * STEP_NS // NS_PER_S // PAGE_BYTES
    return max(1, min(most_pages, pages))
