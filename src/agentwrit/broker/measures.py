"""A store's measurements of itself, as plain numbers, for monitoring."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)  # seconds


class Durations:
    """A histogram: the durations within each bound, and their sum. One thread writes it; any thread may read it."""

    def __init__(self) -> None:
        self.numbers: list[float] = [0] * (len(BUCKETS) + 2)

    def add(self, seconds: float) -> None:
        self.numbers[bisect_left(BUCKETS, seconds)] += 1
        self.numbers[-1] += seconds


class Measures:
    """The measurements of one process.

    `log_head`, `feed_head`: numbers of the newest known event and revocation; `database_ahead`: the seconds by which
    the database's clock is ahead of this machine's, if there is one.
    """

    def __init__(self) -> None:
        self.barrier = Durations()
        """Read barriers: asking the database what other brokers have revoked."""
        self.commit = Durations()
        """Making a batch durable, including fsync and standbys."""
        self.lock_wait = Durations()
        """From the start of a batch until it has the lock among the brokers."""
        self.log_head = 0
        self.feed_head = 0
        self.is_in_charge = False
        self.database_ahead: Callable[[], float] = lambda: 0.0
