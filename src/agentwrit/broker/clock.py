"""The broker's time: the system's, but never backwards, and not ahead because of a single reading.

The rules:

- What has expired once stays expired: an expired token does not become valid again because somebody, or NTP, set the
  clock back. The store keeps the highest committed time, so this holds across restarts too.
- While the system's clock is behind that time, the broker's time runs at half speed. If it stood still, every token
  would live longer by the whole step.
- Accepted time cannot be taken back. So while the broker runs, it accepts a clock that steps ahead only by little per
  hour, or if the machine was asleep for that long. Otherwise its time continues by itself, and the operator is told: if
  the system's clock is right, restart the broker.
- At startup, the broker's time has nothing to continue from, so the system's clock is accepted, unless it is so far
  ahead of the store's time that no broker can have been down for that long.
"""

import math
import threading
import time
from collections.abc import Callable
from typing import Final

from agentwrit.domain.errors import ConfigurationError
from agentwrit.domain.timestamps import rfc3339

CATCH_UP_RATE: Final = 0.5
MAX_STEP_SECONDS: Final = 60.0  # the largest accepted step ahead of a running broker, at once or in small steps
STEPS_SECONDS: Final = 3600.0  # in which such steps are added up
MAX_GAP_SECONDS: Final = 30 * 86_400.0  # between the store's time and startup
SLEPT_SECONDS: Final = 300.0  # for how long after a sleep a step may be due to it
_LEAST_SLEEP: Final = 1.0  # seconds; two clocks are not read at the same moment


def suspended() -> float:
    """The seconds that this machine has been asleep, as far as it knows. Monotonic clocks do not count them."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


class Clock:
    """Unix seconds that never run backwards. `wall` and `monotonic`: sources of time. Safe to share between threads.

    `max_step`: the seconds that `wall` may step ahead within an hour and be accepted; `slept`: additional seconds,
    because the machine was asleep. `max_gap`: the seconds that `wall` may be ahead of a store's time.
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
        self._left = max_step  # of what may be accepted now
        self._regained = max_step / STEPS_SECONDS if max_step < math.inf else 0.0  # of that, per second
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
        """The clock of a broker, which accepts nothing that could not be taken back."""
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
        """Let no later reading be below `mark`: a store's durable high-water mark."""
        with self._lock:
            self._last = max(self._last, mark)

    def resume(self, mark: float) -> None:
        """Continue from `mark`, a store's highest time; 0 for a new store.

        Raises:
            ConfigurationError: the source of time is too far ahead of it.
        """
        wall = self._wall()
        if mark and wall - mark > self._max_gap:
            raise ConfigurationError(
                f"the system's clock says {rfc3339(int(wall))}, and the store was used last at {rfc3339(int(mark))}:"
                " set the clock right; or, if it is right, run `agentwrit store clock`"
            )
        self.advance_to(mark)

    def offset(self) -> float:
        """The seconds by which the system's clock is ahead of the broker's time; negative if it is behind."""
        now = self.now()
        return self._wall() - now

    def most_ahead(self) -> float:
        """The largest lead of the system's clock that was not accepted, in seconds, since the last call; or 0."""
        with self._lock:
            most, self._most_ahead = self._most_ahead, 0.0
            return most

    def _allowance(self) -> float:
        """The additional seconds that the system's clock may be ahead now, because this machine was asleep."""
        slept = self._slept()
        if slept - self._slept_before > _LEAST_SLEEP:
            self._allowed += slept - self._slept_before
            self._allowed_until = self._read_at + SLEPT_SECONDS
        elif self._read_at > self._allowed_until:
            self._allowed = 0.0
        self._slept_before = slept
        return self._allowed


class DatabaseTime:
    """The time of a database that brokers share, known without a query for each reading: a source for a `Clock`.

    It keeps the database clock's lead over the local monotonic clock. Each answer of the database bounds the lead,
    because it was made between the request and its arrival.
    """

    def __init__(self, now: float, asked_at: float, heard_at: float) -> None:
        self._offset = now - (asked_at + heard_at) / 2

    def __call__(self) -> float:
        return time.monotonic() + self._offset

    def observe(self, now: float, asked_at: float, heard_at: float) -> None:
        """Take in a time from the database. `asked_at` and `heard_at`: readings of the local monotonic clock."""
        self._offset = min(max(self._offset, now - heard_at), now - asked_at)
