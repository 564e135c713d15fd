"""Clocks."""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple


class Clock(NamedTuple):
    """The time in Unix seconds, and seconds on a clock that cannot be set.

    `monotonic` also counts the time that the machine is suspended, if its system has such a clock.
    """

    wall: Callable[[], float]
    monotonic: Callable[[], float]


class Moment(NamedTuple):
    """One moment on both clocks."""

    wall: float
    monotonic: float

    def seconds_until(self, later: "Moment") -> float:
        """The seconds between two moments, by the clock that shows more.

        A clock shows too little if it stands still while the machine sleeps or its virtual machine is paused, or if it
        was set back.
        """
        (wall, monotonic), (later_wall, later_monotonic) = self, later
        by_wall, by_monotonic = later_wall - wall, later_monotonic - monotonic
        return by_wall if by_wall > by_monotonic else by_monotonic  # runs for each token: max() would take longer

    def before(self, seconds: float) -> "Moment":
        """The moment `seconds` earlier."""
        return Moment(self.wall - seconds, self.monotonic - seconds)


LONG_AGO: Final = Moment(float("-inf"), float("-inf"))


def _monotonic_asleep_too() -> Callable[[], float]:
    """The monotonic clock that also counts the time during which the machine was suspended.

    Linux has a clock for this (`CLOCK_BOOTTIME`). macOS counts it on `CLOCK_MONOTONIC`, which `time.monotonic` does not
    read there. Windows always counts it.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    return time.monotonic


def moment(clock: Clock) -> Moment:
    """The present moment."""
    return Moment(clock.wall(), clock.monotonic())


SYSTEM_CLOCK: Final = Clock(time.time, _monotonic_asleep_too())
