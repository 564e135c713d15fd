"""Timestamps in RFC 3339 format, in UTC."""

from datetime import UTC, datetime
from functools import lru_cache
from math import floor
from typing import Final

SECONDS_REMEMBERED: Final = 64
MAX_UNIX_SECONDS: Final = 253_402_300_799
"""The end of the year 9999, the latest time that RFC 3339 can express."""


def rfc3339(at: float) -> str:
    """Unix seconds as `2026-01-31T23:59:59Z`, with microseconds if they are not zero."""
    return _z(datetime.fromtimestamp(at, UTC).isoformat())


def rfc3339_micros(at: float) -> str:
    """Unix seconds as `2026-01-31T23:59:59.000000Z`. The width is fixed, so the texts sort chronologically."""
    second = floor(at)
    micros = round((at - second) * 1e6)
    if micros == 1_000_000:
        second, micros = second + 1, 0
    return f"{_second(second)}.{micros:06}Z"


@lru_cache(SECONDS_REMEMBERED)  # the same second is formatted thousands of times, and is most of the cost
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().removesuffix("+00:00")


def parse_rfc3339(text: str) -> float:
    """Unix seconds of an RFC 3339 time.

    Raises:
        ValueError: `text` is malformed or has no offset from UTC.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs its offset from UTC, for example a Z at the end")
    return moment.timestamp()


def _z(text: str) -> str:
    return text.removesuffix("+00:00") + "Z"
