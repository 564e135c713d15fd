"""What was worked out once, remembered by texts or bytes of a length that others chose: bounded by their size, too."""

from collections import OrderedDict
from collections.abc import Sized
from typing import Final, Generic, TypeVar

SHORT_KEY: Final = 2048
"""What most tokens, and what is said of one token, stay below. There may be many of these."""
LONGEST_KEY: Final = 16 * 1024

K = TypeVar("K", bound=Sized)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The newest values by their keys: `many` by short ones, and a sixteenth as many by longer ones.

    A value by a key beyond `LONGEST_KEY` is not remembered, so the keys are at most `many` * (`SHORT_KEY` +
    `LONGEST_KEY` / 16) long, all of them together. Safe to share between threads.
    """

    def __init__(self, many: int) -> None:
        self._many = many
        self._short: OrderedDict[K, V] = OrderedDict()
        self._long: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        return (self._short if len(key) <= SHORT_KEY else self._long).get(key)

    def put(self, key: K, value: V) -> None:
        """Remember a value, and forget the oldest for it."""
        length = len(key)
        if length > LONGEST_KEY:
            return
        values, most = (self._short, self._many) if length <= SHORT_KEY else (self._long, self._many // 16)
        values[key] = value
        if len(values) > most:
            values.popitem(last=False)

    def drop(self, key: K) -> None:
        """Forget a value, if it is still remembered."""
        (self._short if len(key) <= SHORT_KEY else self._long).pop(key, None)

    def __len__(self) -> int:
        return len(self._short) + len(self._long)
