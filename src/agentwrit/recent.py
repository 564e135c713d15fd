"""A cache whose keys are text or bytes that others choose. It is bounded by the size of the keys, too."""

from collections import OrderedDict
from collections.abc import Sized
from typing import Final, Generic, TypeVar

SHORT_KEY: Final = 2048
"""Most tokens, and cache keys about one token, are shorter. The cache may hold many of these."""
LONGEST_KEY: Final = 16 * 1024

K = TypeVar("K", bound=Sized)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The newest values by key: up to `many` with short keys, and a sixteenth as many with longer keys.

    Values with keys longer than `LONGEST_KEY` are not cached, so the total size of the keys is at most
    `many` * (`SHORT_KEY` + `LONGEST_KEY` / 16). Safe to share between threads.
    """

    def __init__(self, many: int) -> None:
        self._many = many
        self._short: OrderedDict[K, V] = OrderedDict()
        self._long: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        return (self._short if len(key) <= SHORT_KEY else self._long).get(key)

    def put(self, key: K, value: V) -> None:
        """Cache a value, and evict the oldest one if the cache is full."""
        length = len(key)
        if length > LONGEST_KEY:
            return
        values, most = (self._short, self._many) if length <= SHORT_KEY else (self._long, self._many // 16)
        values[key] = value
        if len(values) > most:
            values.popitem(last=False)

    def drop(self, key: K) -> None:
        """Remove a value if it is still cached."""
        (self._short if len(key) <= SHORT_KEY else self._long).pop(key, None)

    def __len__(self) -> int:
        return len(self._short) + len(self._long)
