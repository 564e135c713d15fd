"""Telling the operator when the broker's time and the system's clock disagree (see `agentwrit.broker.clock`)."""

import asyncio
from typing import Final

import structlog

from agentwrit.broker.clock import MAX_STEP_SECONDS, Clock
from agentwrit.broker.services.background import Background, Work

INTERVAL_SECONDS: Final = 5
BEHIND_SECONDS: Final = 10  # for which a clock may be behind without a message

AHEAD: Final = "the system's clock is ahead, and is not accepted: correct it, or restart the broker if it is right"
WAS_AHEAD: Final = "the system's clock was ahead for a moment, and was not accepted"
BEHIND: Final = (
    "the system's clock is behind the broker's time, which runs at half speed until then: wait, or stop the broker"
    " and run `agentwrit store clock`"
)
AGREED: Final = "the system's clock and the broker's time agree again"

WHOSE: Final = "the system's clock"  # the source of the time; or the database's clock

log = structlog.get_logger("agentwrit.clock")


class Timekeeping:
    """Watches a broker's clock, and logs once that it is wrong and once that it is right again."""

    def __init__(self, clock: Clock, whose: str = WHOSE) -> None:
        self._clock = clock
        self._whose = whose
        self._told: str | None = None

    async def run(self, background: Background) -> None:
        """Repeat until cancelled."""

        async def look() -> None:
            self.look()

        while True:
            await background.attempt(Work.CLOCK, look)
            await asyncio.sleep(INTERVAL_SECONDS)

    def look(self) -> None:
        """Log a change since the last call."""
        offset, most = self._clock.offset(), self._clock.most_ahead()
        wrong = AHEAD if offset > MAX_STEP_SECONDS else BEHIND if offset < -BEHIND_SECONDS else None
        if wrong is None and most and self._told != AHEAD:
            log.error(self._named(WAS_AHEAD), seconds=round(most))
        if wrong != self._told:
            if wrong is None:
                log.info(self._named(AGREED))
            else:
                log.error(self._named(wrong), seconds=round(abs(offset)))
        self._told = wrong

    def _named(self, text: str) -> str:
        return text.replace(WHOSE, self._whose)
