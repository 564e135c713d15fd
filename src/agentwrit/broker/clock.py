"""The broker's time: the system's, but never backwards.

Whatever time has refused once it refuses for good: an expired token does not live again because somebody, or NTP, set
the clock back. The store keeps the highest time that was ever committed, so this holds across restarts too.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

# While the system's clock is behind, ours goes on at this rate until it has been caught up with. Standing still
# instead would let every token live for as long as the step was.
CATCH_UP_RATE: Final = 0.5


class Clock:
    """Unix seconds that never run backwards. `wall` and `monotonic` are where time comes from. Threads may share it."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._last = wall()
        self._read_at = monotonic()
        self._lock = threading.Lock()

    def now(self) -> float:
        with self._lock:
            elapsed = self._monotonic() - self._read_at
            self._read_at += elapsed
            self._last = max(self._wall(), self._last + CATCH_UP_RATE * elapsed)
            return self._last

    def advance_to(self, mark: float) -> None:
        """Let no later reading be below `mark`: the durable high-water mark of a store."""
        with self._lock:
            self._last = max(self._last, mark)


class DatabaseTime:
    """The time of a database that brokers share, told without asking it each time: a source for a `Clock`.

    What is kept is by how much it is ahead of our monotonic clock. An answer of the database bounds that: it was made
    between the asking and the hearing.
    """

    def __init__(self, now: float, asked_at: float, heard_at: float) -> None:
        self._offset = now - (asked_at + heard_at) / 2

    def __call__(self) -> float:
        return time.monotonic() + self._offset

    def observe(self, now: float, asked_at: float, heard_at: float) -> None:
        """Take in what the database said; `asked_at` and `heard_at`: of our monotonic clock."""
        self._offset = min(max(self._offset, now - heard_at), now - asked_at)
