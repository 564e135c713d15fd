"""How often somebody may be wrong: token buckets, in a table that no stranger can grow."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

MAX_BUCKETS: Final = 4096


class RateLimiter:
    """`burst` of something (failures, as a rule) at once, and then `per_second` more each second, for each key.

    When the table is full the bucket that was used longest ago is forgotten; a full bucket is the same as none, so
    only a stranger with more addresses than the table has places gains by that.
    """

    def __init__(self, *, per_second: float, burst: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._monotonic = monotonic
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable, count: int = 1) -> int | None:
        """Take a permit, or `count`. None, or if there are not as many the seconds after which there will be."""
        permits = self._permits(key)
        if permits < count:
            return max(1, math.ceil((count - permits) / self._per_second))
        self._put(key, permits - count)
        return None

    def give_back(self, key: Hashable) -> None:
        """Return a permit: the attempt was no failure."""
        self._put(key, min(self._burst, self._permits(key) + 1))

    def _permits(self, key: Hashable) -> float:
        permits, at = self._buckets.get(key, (self._burst, 0.0))
        return min(self._burst, permits + (self._monotonic() - at) * self._per_second)

    def _put(self, key: Hashable, permits: float) -> None:
        self._buckets[key] = (permits, self._monotonic())
        self._buckets.move_to_end(key)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
