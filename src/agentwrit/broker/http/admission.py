"""Turning away what is too much: a longer queue would only make everybody wait."""

import asyncio
from typing import Final

import structlog

from agentwrit.domain.errors import Unavailable

MAX_UNDER_WAY: Final = 256  # requests: about what the broker does in a tenth of a second
LOG_SECONDS: Final = 1

BUSY: Final = Unavailable("the broker is busy", cause="busy")

log = structlog.get_logger("agentwrit.http")


class Admission:
    """Counts the requests that are being worked on. Of those that it turns away the log gets a count now and then."""

    def __init__(self, limit: int = MAX_UNDER_WAY) -> None:
        self._limit = limit
        self._under_way = 0
        self._turned_away = 0
        self._logged_at = float("-inf")

    def enter(self, now: float) -> bool:
        """Whether a request, all of which is here, is let in; then `leave` follows. `now`: of a monotonic clock."""
        if self._under_way < self._limit:
            self._under_way += 1
            return True
        self._turned_away += 1
        if now >= self._logged_at + LOG_SECONDS:
            log.warning("busy: requests are turned away", count=self._turned_away)
            self._turned_away = 0
            self._logged_at = now
        return False

    def leave(self, task: asyncio.Task[None]) -> None:
        """The task that worked on it is over."""
        self._under_way -= 1
