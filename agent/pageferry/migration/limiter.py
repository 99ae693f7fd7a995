"""A bandwidth that several threads share."""

from __future__ import annotations

import threading
import time

from pageferry.policy.bandwidth import NS_PER_S, TokenBucket


class Limiter:
    """Makes threads wait so that all of them together keep to a rate. Any thread may call."""

    def __init__(self, bytes_per_s: int = 0) -> None:
        """*bytes_per_s* 0: no limit."""
        self._bucket = TokenBucket(bytes_per_s)
        self._changed = threading.Condition()
        self._stopped = False

    @property
    def bytes_per_s(self) -> int:
        """The rate; 0 without a limit."""
        return self._bucket.bytes_per_s

    def set_rate(self, bytes_per_s: int) -> None:
        """From now on another rate; who waits now waits to the end."""
        with self._changed:
            self._bucket.set_rate(bytes_per_s, time.monotonic_ns())

    def pass_through(self, length_bytes: int) -> None:
        """Wait until *length_bytes* may go. Returns at once when stopped."""
        if not self._bucket.bytes_per_s:
            return
        with self._changed:
            now_ns = time.monotonic_ns()
            until_ns = now_ns + self._bucket.take(length_bytes, now_ns)
            while not self._stopped and (now_ns := time.monotonic_ns()) < until_ns:
                self._changed.wait((until_ns - now_ns) / NS_PER_S)

    def take(self, length_bytes: int) -> None:
        """Let *length_bytes* through without waiting; `wait_ns` tells what that costs the next."""
        if not self._bucket.bytes_per_s:
            return
        with self._changed:
            self._bucket.take(length_bytes, time.monotonic_ns())

    def wait_ns(self) -> int:
        """After how many ns something may go; 0: at once."""
        if not self._bucket.bytes_per_s:
            return 0
        with self._changed:
            return self._bucket.wait_ns(time.monotonic_ns())

    def stop(self) -> None:
        """Nobody waits any more, now or later."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
