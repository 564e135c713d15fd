"""The store that brokers share: PostgreSQL.

One connection writes (`postgres_writer`), one asks what others committed (`postgres_barrier`), and each thread that
reads has its own (`postgres_readers`). They are made anew when they are lost. What waits for the server does so for a
few seconds at most; then its connection is broken off, and the caller gets `Unavailable`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

import psycopg
import structlog

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import postgres_link, sql_units
from agentwrit.broker.storage.base import RevocationListener, Snapshot, Transaction
from agentwrit.broker.storage.postgres_barrier import Barrier, News
from agentwrit.broker.storage.postgres_readers import Readers
from agentwrit.broker.storage.postgres_schema import Opening
from agentwrit.broker.storage.postgres_writer import Lost, OutcomeUnknown, Writer
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql_units import Waiting
from agentwrit.domain.errors import TamperedRecord, Unavailable
from agentwrit.domain.revocation import Revocation

T = TypeVar("T")

WRITE_SECONDS: Final = 6  # for a batch, connecting included
MAX_BATCH_UNITS: Final = 256

CANNOT_WRITE: Final = "the store cannot be written"
UNKNOWN: Final = "the store was lost while it wrote: what was asked for may have been done, or not"

log = structlog.get_logger("agentwrit.storage")


class PostgresStore:
    """The `Store` of one broker in a database that it may share with others. `clock` runs on the database's time."""

    def __init__(self, opening: Opening, clock: Clock, sealer: Sealer) -> None:
        self._url = opening.url
        self._clock = clock
        self._sealer = sealer
        self._announced = opening.state.feed_head  # listeners know the feed up to this number, or read it themselves
        self._writer = Writer(opening.url, clock, sealer, opening.state)
        self._barrier = Barrier(
            opening.url, sealer, opening.state, opening.time, lambda: self._announced, self._take_news
        )
        self._waiting: deque[Waiting] = deque()
        self._committer: asyncio.Task[None] | None = None
        self._listeners: list[RevocationListener] = []
        self._is_writable = True
        self._is_closed = False
        self._write_thread = ThreadPoolExecutor(1, "postgres-write")
        self._readers = Readers(opening.url, sealer)
        clock.advance_to(opening.state.now)

    async def write(self, unit: Callable[[Transaction], T]) -> T:
        self._check_open()
        answer = sql_units.wait(self._waiting, unit)
        if self._committer is None:
            self._committer = asyncio.create_task(self._commit_all())
        return await answer

    async def read(self, query: Callable[[Snapshot], T]) -> T:
        self._check_open()
        return await self._readers.read(query)

    def listen(self, listener: RevocationListener) -> None:
        self._listeners.append(listener)

    async def catch_up(self) -> None:
        self._check_open()
        await self._barrier.wait()

    async def is_in_charge(self) -> bool:
        self._check_open()
        try:
            return await self._on_write_thread(self._writer.take_charge)
        except (Lost, psycopg.Error) as error:
            raise Unavailable("the store cannot be reached") from error

    def is_writable(self) -> bool:
        return self._is_writable and not self._is_closed

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._committer is not None:
            await self._committer
        await self._barrier.close()
        self._writer.break_off()
        self._write_thread.shutdown()
        self._writer.close()
        self._readers.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable("the broker is stopping")

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                units = self._next_units()
                if not units:
                    return
                try:
                    batch = await self._on_write_thread(partial(self._writer.run, units, self._announced))
                except BaseException as error:
                    # Whatever it is: everyone who waits is answered. Those behind would only wait as long again.
                    detail = UNKNOWN if isinstance(error, OutcomeUnknown) else CANNOT_WRITE
                    if self._is_writable or detail is UNKNOWN:
                        log.warning(detail, reason=postgres_link.reason(error.__cause__ or error))
                    self._is_writable = False
                    sql_units.fail((waiting.answer for waiting in units), detail, error)
                    sql_units.fail((waiting.answer for waiting in self._waiting), CANNOT_WRITE, error)
                    self._waiting.clear()
                    if not isinstance(error, (OutcomeUnknown, Lost, psycopg.Error, TamperedRecord)):
                        raise
                else:
                    if not self._is_writable:
                        log.info("the store can be written again")
                    self._is_writable = True
                    self._waiting.extendleft(reversed(units[len(batch.outcomes) :]))
                    self._announce(batch.revocations, batch.state.feed_head)
                    sql_units.deliver(batch.outcomes)
        finally:
            self._committer = None

    def _next_units(self) -> list[Waiting]:
        units: list[Waiting] = []
        while self._waiting and len(units) < MAX_BATCH_UNITS:
            waiting = self._waiting.popleft()
            if not waiting.answer.cancelled():
                units.append(waiting)
        return units

    async def _on_write_thread(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(WRITE_SECONDS, self._writer.break_off)
        try:
            return await loop.run_in_executor(self._write_thread, work)
        finally:
            timer.cancel()

    def _take_news(self, news: News) -> None:
        self._clock.advance_to(news.state.now)
        self._announce(news.revocations, news.state.feed_head)

    def _announce(self, revocations: Sequence[Revocation], feed_head: int) -> None:
        if revocations:
            for listener in self._listeners:
                listener(revocations)
        self._announced = max(self._announced, feed_head)
