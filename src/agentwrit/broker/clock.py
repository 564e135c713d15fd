"""The broker's time: the system's, but never backwards, and not ahead because of a single reading.

The rules:

- Whatever time has refused once it refuses for good: an expired token does not live again because somebody, or NTP, set
  the clock back. The store keeps the highest time that was ever committed, so this holds across restarts too.
- While the system's clock is behind it, ours goes on at half speed. Standing still instead would let every token live
  for as long as the step was.
- So a time that was believed once cannot be taken back, and a clock that steps ahead while the broker runs is believed
  only if it is by little in an hour, or if the machine was asleep for as long. Else ours goes on by itself, and the
  operator is told: whoever finds the system's clock right restarts the broker.
- At a start there is nothing to go on by itself from, so the system's clock is believed; but not if it is so far ahead
  of the store's time that no broker can have been away for so long.
"""

import math
import threading
import time
from collections.abc import Callable
from typing import Final

from agentwrit.domain.errors import ConfigurationError
from agentwrit.domain.timestamps import rfc3339

CATCH_UP_RATE: Final = 0.5
MAX_STEP_SECONDS: Final = 60.0  # ahead, while the broker runs, that are believed: at once, or in many small steps
STEPS_SECONDS: Final = 3600.0  # within which these are taken together
MAX_GAP_SECONDS: Final = 30 * 86_400.0  # between the store's time and a start
SLEPT_SECONDS: Final = 300.0  # for how long a step may be because of a sleep
_LEAST_SLEEP: Final = 1.0  # seconds; two clocks are not read at the same moment


def suspended() -> float:
    """For how many seconds this machine has been asleep, as far as it knows; they pass on no monotonic clock."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


class Clock:
    """Unix seconds that never run backwards. `wall` and `monotonic` are where time comes from. Threads may share it.

    `max_step`: how many seconds `wall` may be ahead in an hour and is believed; `slept`: by how many more, because the
    machine was asleep for as long. `max_gap`: how many seconds it may be ahead of what a store knows.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        max_step: float = math.inf,
        max_gap: float = math.inf,
        slept: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._max_step = max_step
        self._left = max_step  # of what may be believed now
        self._regained = max_step / STEPS_SECONDS if max_step < math.inf else 0.0  # of that, in each second
        self._max_gap = max_gap
        self._slept = slept
        self._slept_before = slept()
        self._allowed = 0.0  # for sleep, until `_allowed_until`
        self._allowed_until = 0.0
        self._last = wall()
        self._read_at = monotonic()
        self._most_ahead = 0.0
        self._lock = threading.Lock()

    @classmethod
    def of_broker(cls, wall: Callable[[], float] = time.time) -> "Clock":
        """The clock of a broker: it believes nothing that nobody could take back."""
        return cls(wall, max_step=MAX_STEP_SECONDS, max_gap=MAX_GAP_SECONDS, slept=suspended)

    def now(self) -> float:
        with self._lock:
            elapsed = self._monotonic() - self._read_at
            self._read_at += elapsed
            wall = self._wall()
            ahead = wall - (self._last + elapsed)
            self._left = min(self._max_step, self._left + self._regained * elapsed)
            if ahead > self._left and ahead > self._left + self._allowance():
                self._most_ahead = max(self._most_ahead, ahead)
                self._last += elapsed
            else:
                self._left -= min(max(ahead, 0.0), self._left)
                self._last = max(wall, self._last + CATCH_UP_RATE * elapsed)
            return self._last

    def advance_to(self, mark: float) -> None:
        """Let no later reading be below `mark`: the durable high-water mark of a store."""
        with self._lock:
            self._last = max(self._last, mark)

    def resume(self, mark: float) -> None:
        """Go on from `mark`, the highest time that a store knows; 0 for a new one.

        Raises:
            ConfigurationError: the source says that it is much later than that.
        """
        wall = self._wall()
        if mark and wall - mark > self._max_gap:
            raise ConfigurationError(
                f"the system's clock says {rfc3339(int(wall))}, and the store was used last at {rfc3339(int(mark))}:"
                " set the clock right; or, if it is right, run `agentwrit store clock`"
            )
        self.advance_to(mark)

    def offset(self) -> float:
        """By how many seconds the system's clock is ahead of our time, which does not believe it; negative: behind."""
        now = self.now()
        return self._wall() - now

    def most_ahead(self) -> float:
        """By how much the system's clock was ahead and not believed, at most, since this was asked last; or 0."""
        with self._lock:
            most, self._most_ahead = self._most_ahead, 0.0
            return most

    def _allowance(self) -> float:
        """By how many seconds more the system's clock may be ahead now, because this machine was asleep."""
        slept = self._slept()
        if slept - self._slept_before > _LEAST_SLEEP:
            self._allowed += slept - self._slept_before
            self._allowed_until = self._read_at + SLEPT_SECONDS
        elif self._read_at > self._allowed_until:
            self._allowed = 0.0
        self._slept_before = slept
        return self._allowed


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
