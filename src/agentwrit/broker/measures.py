"""What a store measures of itself, as plain numbers, for whoever watches over it."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)  # seconds


class Durations:
    """How many took up to each bound, and how long all took together. One thread adds to it; any may read it."""

    def __init__(self) -> None:
        self.numbers: list[float] = [0] * (len(BUCKETS) + 2)

    def add(self, seconds: float) -> None:
        self.numbers[bisect_left(BUCKETS, seconds)] += 1
        self.numbers[-1] += seconds


class Measures:
    """Of one process. `log_head`, `feed_head`: numbers of the newest event and revocation that it knows;
    `database_ahead`: by how many seconds the database's clock is ahead of this machine's, where there is one.
    """

    def __init__(self) -> None:
        self.barrier = Durations()
        """Asking the database what others have revoked."""
        self.commit = Durations()
        """Making a batch durable, fsync and standbys included."""
        self.lock_wait = Durations()
        """From a batch's beginning until it is its turn among the brokers."""
        self.log_head = 0
        self.feed_head = 0
        self.is_in_charge = False
        self.database_ahead: Callable[[], float] = lambda: 0.0
