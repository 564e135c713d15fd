"""What time it is."""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple


class Clock(NamedTuple):
    """What time it is: Unix seconds, and seconds on a clock that nobody sets.

    `monotonic` goes on while the machine is suspended, as far as its system has such a clock.
    """

    wall: Callable[[], float]
    monotonic: Callable[[], float]


class Moment(NamedTuple):
    """One moment on both clocks."""

    wall: float
    monotonic: float

    def seconds_until(self, later: "Moment") -> float:
        """How much time has passed between two moments: what the clock says that says more.

        A clock that stands still while a machine sleeps, or is paused with all that it runs on, says too little; so
        does one that was set back.
        """
        (wall, monotonic), (later_wall, later_monotonic) = self, later
        by_wall, by_monotonic = later_wall - wall, later_monotonic - monotonic
        return by_wall if by_wall > by_monotonic else by_monotonic  # asked with each token: max() would take longer

    def before(self, seconds: float) -> "Moment":
        """So many seconds earlier."""
        return Moment(self.wall - seconds, self.monotonic - seconds)


LONG_AGO: Final = Moment(float("-inf"), float("-inf"))


def _monotonic_asleep_too() -> Callable[[], float]:
    """The monotonic clock that also counts the time that the machine was suspended for.

    Linux has one of its own for that (`CLOCK_BOOTTIME`), macOS counts it on `CLOCK_MONOTONIC`, which is not what
    `time.monotonic` reads there, and Windows counts it anyway.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    return time.monotonic


def moment(clock: Clock) -> Moment:
    """Now."""
    return Moment(clock.wall(), clock.monotonic())


SYSTEM_CLOCK: Final = Clock(time.time, _monotonic_asleep_too())
