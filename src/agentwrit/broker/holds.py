"""How long the event loop is blocked, during which no other request is served."""

import asyncio
import time
from typing import Final

from agentwrit.broker.measures import Durations

TICK_SECONDS: Final = 0.01
"""The interval between two checks. A block's part up to the next check is not measured."""
REMEMBERED_SECONDS: Final = 60.0
"""How long the longest block is reported, at least. At most it is twice as long."""


class Holds:
    """Measures how late a timer fires. `durations` contains all measurements, however short."""

    def __init__(self) -> None:
        self.durations = Durations()
        self._longest = [0.0, 0.0]  # in the present interval, and in the previous one
        self._span_ends = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Measure from now on, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._span_ends = time.monotonic() + REMEMBERED_SECONDS
        self._wait(time.monotonic())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def longest(self) -> float:
        """The longest recent block, in seconds."""
        return max(self._longest)

    def add(self, seconds: float, now: float) -> None:
        """Record a block, at a time of the monotonic clock."""
        self.durations.add(seconds)
        if now >= self._span_ends:
            is_next = now < self._span_ends + REMEMBERED_SECONDS
            self._longest = [0.0, self._longest[0] if is_next else 0.0]
            self._span_ends = now + REMEMBERED_SECONDS
        self._longest[0] = max(self._longest[0], seconds)

    def _wait(self, now: float) -> None:
        self._due = now + TICK_SECONDS
        self._timer = self._loop.call_later(TICK_SECONDS, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        self.add(max(0.0, now - self._due), now)
        self._wait(now)
