"""What time it is."""

import time
from collections.abc import Callable
from typing import Final, NamedTuple


class Clock(NamedTuple):
    """What time it is: Unix seconds, and seconds on a clock that nobody sets."""

    wall: Callable[[], float]
    monotonic: Callable[[], float]


SYSTEM_CLOCK: Final = Clock(time.time, time.monotonic)
