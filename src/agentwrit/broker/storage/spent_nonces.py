"""Which nonces were surely not spent, told without asking the database: hardly any that comes was.

Two Bloom filters of a fixed size, the younger of which takes what is spent now. When nothing in the older one matters
any more it is dropped, and the younger one ages. Whether what they hold was spent is for the database to say.
"""

from collections.abc import Iterable
from typing import Final

PLACE_BITS: Final = 21  # of each of a nonce's three places: all that a hash of 64 bits has
_MASK: Final = 2**PLACE_BITS - 1
_FILTER_BYTES: Final = 2**PLACE_BITS // 8  # with 200,000 nonces, more than a minute brings, one in seventy is looked up


class SpentNonces:
    """Nonces that were spent, and a few others. `spent`: those that a store holds, each with its end (Unix seconds)."""

    def __init__(self, spent: Iterable[tuple[bytes, int]] = (), *, now: float) -> None:
        self._young, self._young_until = bytearray(_FILTER_BYTES), 0
        self._old, self._old_until = self._young, 0
        for nonce, expires_at in spent:
            self.add(nonce, expires_at, now=now)

    def may_hold(self, nonce: bytes) -> bool:
        """False for one that was not spent. It may be false, too, for one whose time is over."""
        places = _places(nonce)
        return _has(self._young, places) or _has(self._old, places)

    def add(self, nonce: bytes, expires_at: int, *, now: float) -> None:
        """Take in one that was spent. `expires_at`: when it may be forgotten; `now`: Unix seconds."""
        if self._old_until <= now:
            self._old, self._old_until = self._young, self._young_until
            self._young, self._young_until = bytearray(_FILTER_BYTES), 0
        self._young_until = max(self._young_until, expires_at)
        for place in _places(nonce):
            self._young[place >> 3] |= 1 << (place & 7)


def _places(nonce: bytes) -> tuple[int, int, int]:
    # Python's hash of bytes has a secret key, so nobody can aim at the places of others.
    places = hash(nonce)
    return places & _MASK, places >> PLACE_BITS & _MASK, places >> 2 * PLACE_BITS & _MASK


def _has(bits: bytearray, places: tuple[int, int, int]) -> bool:
    first, second, third = places
    return bool(
        bits[first >> 3] & 1 << (first & 7)
        and bits[second >> 3] & 1 << (second & 7)
        and bits[third >> 3] & 1 << (third & 7)
    )
