"""Settling a store whose server was promoted, from a broker that runs or starts: once in a process, however many wait.

Whoever can vouch that nothing is lost does it at once. Whoever cannot waits for such a broker first: it would have come
within seconds. After that, all that was granted ends. So it does at once where a process knows that something is lost.
"""

import asyncio
import contextlib
import time
from typing import Final

import psycopg
import structlog

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import postgres_alone
from agentwrit.broker.storage.base import GoOn, Promotion
from agentwrit.broker.storage.postgres_lineage import Lineage, Unsettled
from agentwrit.broker.storage.postgres_link import Link, reason
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import TamperedRecord, Unavailable

VOUCHER_SECONDS: Final = 10  # for another broker to come that knows that nothing is lost
RETRY_SECONDS: Final = 0.25
ANSWER_SECONDS: Final = 4  # whoever waits longer is told that the store cannot be used

log = structlog.get_logger("agentwrit.storage")


class Settling:
    """Owned by one event loop. `go_on`: the unit of work that a store goes on with; without it others have to do it."""

    def __init__(self, url: str, sealer: Sealer, lineage: Lineage, clock: Clock, go_on: GoOn | None) -> None:
        self._url = url
        self._sealer = sealer
        self._lineage = lineage
        self._clock = clock
        self._go_on = go_on
        self._link: Link | None = None
        self._under_way: asyncio.Task[None] | None = None
        self._first_at: float | None = None  # when the promotion was noticed

    async def done(self) -> None:
        """Wait until the store is settled, for a while.

        Raises:
            Unsettled: it is not yet.
            Unavailable: it cannot be.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self.finish()
        except TimeoutError:
            raise Unsettled from None

    async def finish(self) -> None:
        """Wait until the store is settled, for as long as it takes.

        Raises:
            Unsettled: it is for others to do.
            Unavailable: it cannot be.
        """
        try:
            await asyncio.shield(self._begun())
        except (psycopg.Error, TamperedRecord) as error:
            raise Unavailable(f"the store cannot be gone on with ({reason(error)})") from error

    def end_if_lost(self) -> None:
        """Begin to let all that was granted end, if this process knows that commits are lost."""
        if self._lineage.lost is not None and self._go_on is not None:
            self._begun()

    def _begun(self) -> asyncio.Task[None]:
        if self._under_way is None:
            self._under_way = asyncio.get_running_loop().create_task(self._settle())
            self._under_way.add_done_callback(self._ended)
        return self._under_way

    async def close(self) -> None:
        """Give up what is under way: another broker does it, or the next start."""
        if self._under_way is None:
            return
        self._under_way.cancel()
        if self._link is not None:
            self._link.break_off()
        with contextlib.suppress(asyncio.CancelledError, Unavailable, TamperedRecord, psycopg.Error):
            await self._under_way

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way = None
        error = None if task.cancelled() else task.exception()  # whoever waited may be gone
        if error is not None and not isinstance(error, Unsettled):
            log.warning("the store cannot be gone on with yet", reason=reason(error))

    async def _settle(self) -> None:
        if self._go_on is None:
            raise Unsettled
        noticed_at = time.monotonic()
        while True:
            may_end = time.monotonic() >= noticed_at + VOUCHER_SECONDS
            try:
                promotion = await asyncio.to_thread(self._try, self._go_on, may_end)
            except Unsettled:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._lineage.lost = None
                _tell(promotion)
                return

    def _try(self, go_on: GoOn, may_end: bool) -> Promotion | None:
        link = self._link = Link.connect(self._url)
        try:
            return postgres_alone.settle(
                link, self._sealer, self._lineage, go_on, now=self._clock.now(), may_end=may_end
            )
        finally:
            link.close()


def _tell(promotion: Promotion | None) -> None:
    if promotion is None:
        log.info("another broker has gone on with the store of a database server that was promoted")
        return
    log.warning(
        "the database server was promoted, and nothing is lost"
        if promotion.is_lossless
        else "the database server was promoted, and commits may be lost: all that had been granted before has ended",
        timeline_before=promotion.before,
        timeline=promotion.since,
    )
