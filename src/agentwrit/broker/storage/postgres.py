"""The store that brokers share: PostgreSQL.

One connection writes (`postgres_writer`), one asks what others committed (`postgres_barrier`), and each thread that
reads has its own (`postgres_readers`). They are made anew when they are lost. What waits for the server does so for a
few seconds at most; then its connection is broken off, and the caller gets `Unavailable`.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

import psycopg
import structlog

from agentwrit.broker.clock import Clock
from agentwrit.broker.measures import Measures
from agentwrit.broker.storage import postgres_link, sql_units
from agentwrit.broker.storage.base import GoOn, RevocationListener, Row, Snapshot, Transaction
from agentwrit.broker.storage.postgres_barrier import Barrier, News
from agentwrit.broker.storage.postgres_lineage import Unsettled
from agentwrit.broker.storage.postgres_readers import Readers
from agentwrit.broker.storage.postgres_rows import State
from agentwrit.broker.storage.postgres_schema import Opening
from agentwrit.broker.storage.postgres_settling import Settling
from agentwrit.broker.storage.postgres_writer import (
    BATCH_SECONDS,
    UNITS_OWN_FAULT,
    Begun,
    Behind,
    Lost,
    OutcomeUnknown,
    Writer,
    Written,
)
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql_batch import NotInMemory, Question, Unread
from agentwrit.broker.storage.sql_units import Outcome, Queue, Waiting
from agentwrit.domain.errors import TamperedRecord, Unavailable
from agentwrit.domain.revocation import Revocation

T = TypeVar("T")

WRITE_SECONDS: Final = 6  # for a batch, connecting included
MAX_BATCH_UNITS: Final = 256
MEMORY_SECONDS: Final = 1  # what a broker has seen is durable on its own machine, too
TURN_SECONDS: Final = 0.005  # how long the units of a batch may keep the event loop from everybody else
MAX_READINGS: Final = 8  # in a batch; if no unit has all its rows by then, one is run on the database

CANNOT_WRITE: Final = "the store cannot be written"
UNKNOWN: Final = "the store was lost while it wrote: what was asked for may have been done, or not"

log = structlog.get_logger("agentwrit.storage")


class PostgresStore:
    """The `Store` of one broker in a database that it may share with others. `clock` runs on the database's time.

    `go_on`: what it begins with when the database server was promoted; without it, somebody else has to.
    """

    def __init__(self, opening: Opening, clock: Clock, sealer: Sealer, go_on: GoOn | None = None) -> None:
        self._url = opening.url
        self._clock = clock
        self._sealer = sealer
        self._announced = opening.state.feed_head  # listeners know the feed up to this number, or read it themselves
        lineage = opening.lineage
        self._settling = Settling(opening.url, sealer, lineage, clock, go_on)
        self.measures = Measures()
        self.measures.database_ahead = lambda: opening.time() - time.time()
        self._writer = Writer(opening.url, clock, sealer, lineage, self.measures)
        self._barrier = Barrier(
            opening.url,
            sealer,
            lineage,
            opening.time,
            lambda: self._announced,
            self._take_news,
            self._settling.done,
            self.measures.barrier,
        )
        self._waiting = Queue(self._take_up)
        self._committing: asyncio.Task[None] | None = None  # while there are any
        self._listeners: list[RevocationListener] = []
        self._is_writable = True
        self._is_closed = False
        self._writing = asyncio.Lock()
        self._write_thread = ThreadPoolExecutor(1, "postgres-write")
        self._readers = Readers(opening.url, sealer, lineage)
        self._memory = opening.memory
        self._memory_timer: asyncio.TimerHandle | None = None  # while what was seen is yet to be made durable
        clock.resume(opening.state.now)

    async def settle(self) -> None:
        """Go on after a promotion of the server, or wait for another broker that does, for as long as it takes.

        Raises:
            Unavailable: that cannot be, or is not for us to do.
        """
        await self._settling.finish()

    async def write(self, unit: Callable[[Transaction], T], *, reads: Sequence[Row] = ()) -> T:
        self._check_open()
        return await self._waiting.put(unit, reads)

    async def read(self, query: Callable[[Snapshot], T]) -> T:
        self._check_open()
        try:
            return await self._readers.read(query)
        except Unsettled:
            await self._settling.done()
            return await self._readers.read(query)

    def listen(self, listener: RevocationListener) -> None:
        self._listeners.append(listener)

    async def catch_up(self) -> None:
        self._check_open()
        try:
            await self._barrier.wait()
        except Unavailable:
            self._settling.end_if_lost()
            raise

    async def is_in_charge(self) -> bool:
        self._check_open()
        try:
            async with self._turn():
                self.measures.is_in_charge = False  # as long as it is not known
                self.measures.is_in_charge = await self._on_write_thread(self._writer.take_charge)
                return self.measures.is_in_charge
        except (Lost, TamperedRecord, psycopg.Error) as error:
            raise Unavailable("the store cannot be reached") from error

    def log_bytes(self) -> int:
        return 0  # that is the server's

    def is_writable(self) -> bool:
        return self._is_writable and not self._is_closed

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._take_up()
        if self._committing is not None:
            await self._committing
        await self._settling.close()
        await self._barrier.close()
        self._writer.break_off()
        self._write_thread.shutdown()
        self._writer.close()
        self._readers.close()
        if self._memory_timer is not None:
            self._memory_timer.cancel()
        if self._memory is not None:
            self._memory.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable("the broker is stopping", cause="stopping")

    def _take_up(self) -> None:
        if self._committing is None:
            self._committing = asyncio.get_running_loop().create_task(self._commit_all())

    async def _commit_all(self) -> None:
        try:
            await self._commit_waiting()
        finally:
            self._committing = None

    async def _commit_waiting(self) -> None:
        while self._waiting:
            units = self._next_units()
            if not units:
                return
            try:
                written = await self._write(units)
            except BaseException as error:
                # Whatever it is: everyone who waits is answered. Those behind would only wait as long again.
                detail = UNKNOWN if isinstance(error, OutcomeUnknown) else CANNOT_WRITE
                if self._is_writable or detail is UNKNOWN:
                    log.warning(detail, reason=postgres_link.reason(error.__cause__ or error))
                self._is_writable = False
                cause = _cause(error)
                sql_units.fail((waiting.answer for waiting in units), detail, error, cause=cause)
                sql_units.fail((waiting.answer for waiting in self._waiting), CANNOT_WRITE, error, cause=cause)
                self._waiting.clear()
                if not isinstance(error, (OutcomeUnknown, Lost, psycopg.Error, TamperedRecord, Unavailable)):
                    raise
            else:
                if not self._is_writable:
                    log.info("the store can be written again")
                self._is_writable = True
                self._waiting.extendleft(reversed(written.left))
                self._announce(written.revocations, written.state)
                sql_units.deliver(written.outcomes)

    def _next_units(self) -> list[Waiting]:
        units: list[Waiting] = []
        while self._waiting and len(units) < MAX_BATCH_UNITS:
            waiting = self._waiting.popleft()
            if not waiting.answer.cancelled():
                units.append(waiting)
        return units

    async def _write(self, units: Sequence[Waiting]) -> Written:
        while True:
            try:
                return await self._write_once(units)
            except Behind:
                await self._barrier.wait()
            except Unsettled:
                await self._settling.done()
                return await self._write_once(units)

    async def _write_once(self, units: Sequence[Waiting]) -> Written:
        async with self._turn():
            is_from_before = self._writer.is_connected
            try:
                return await self._write_together(units)
            except Lost:
                if not is_from_before or self._writer.is_broken_off:
                    raise  # else the server may have been restarted since that connection was used
            except (*UNITS_OWN_FAULT, psycopg.errors.PipelineAborted):
                return await self._on_write_thread(partial(self._writer.run_one_by_one, units, self._announced))
            return await self._write_together(units)

    async def _write_together(self, units: Sequence[Waiting]) -> Written:
        known = [row for waiting in units for row in waiting.reads]
        begun = await self._on_write_thread(partial(self._writer.begin, self._announced, known))
        try:
            outcomes, left = await self._run(begun, units)
        except BaseException:
            await self._on_write_thread(self._writer.close)
            raise
        return await self._on_write_thread(partial(self._writer.commit, begun, begun.batch.writing(), outcomes, left))

    async def _run(self, begun: Begun, units: Sequence[Waiting]) -> tuple[Sequence[Outcome], Sequence[Waiting]]:
        """Run units in memory, and on the database those that ask for it. Returns what they came to, and those left."""
        outcomes: list[Outcome] = []
        turn_until = time.monotonic() + TURN_SECONDS
        stop_at = time.monotonic() + BATCH_SECONDS
        waiting = deque(units)
        for readings in range(MAX_READINGS + 1):
            unread: list[Waiting] = []
            wanted: list[Row | Question] = []
            held_up: set[Row] = set()
            # However slow the database is: one at least is done in each batch, or a unit that needs many rows would
            # begin anew for ever.
            while waiting and (time.monotonic() < stop_at or not (outcomes or unread)):
                if time.monotonic() >= turn_until:
                    await asyncio.sleep(0)
                    turn_until = time.monotonic() + TURN_SECONDS
                unit = waiting.popleft()
                if not held_up.isdisjoint(unit.reads):
                    unread.append(unit)  # a step behind one that lacks rows would lack others when that is taken
                    continue
                try:
                    outcomes.append(await self._run_unit(begun, unit, is_in_memory=readings < MAX_READINGS))
                except Unread as lacking:
                    unread.append(unit)
                    wanted.append(lacking.wanted)
                    held_up.update(row for row in unit.reads if row.table == "endings")
            waiting.extendleft(reversed(unread))
            is_late = time.monotonic() >= stop_at or readings == MAX_READINGS - 1
            if not waiting or (outcomes and is_late):
                break
            await self._on_write_thread(partial(self._writer.read, begun, wanted))
        return outcomes, waiting

    async def _run_unit(self, begun: Begun, unit: Waiting, *, is_in_memory: bool) -> Outcome:
        if is_in_memory:
            with contextlib.suppress(NotInMemory):
                return begun.batch.run(unit)
        return await self._on_write_thread(partial(self._writer.run_on_database, begun, unit))

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """With the writer for oneself. What takes too long is broken off."""
        async with self._writing:
            self._writer.allow()
            timer = asyncio.get_running_loop().call_later(WRITE_SECONDS, self._writer.break_off)
            try:
                yield
            finally:
                timer.cancel()

    async def _on_write_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._write_thread, work)

    def _take_news(self, news: News) -> None:
        self._clock.advance_to(news.state.now)
        self._announce(news.revocations, news.state)

    def _announce(self, revocations: Sequence[Revocation], state: State) -> None:
        if revocations:
            for listener in self._listeners:
                listener(revocations)
        self._announced = self.measures.feed_head = max(self._announced, state.feed_head)
        self.measures.log_head = max(self.measures.log_head, state.sequence)
        if self._memory is not None and self._memory_timer is None:
            self._memory_timer = asyncio.get_running_loop().call_later(MEMORY_SECONDS, self._sync_memory)

    def _sync_memory(self) -> None:
        self._memory_timer = None
        if self._memory is not None and not self._is_closed:
            asyncio.get_running_loop().run_in_executor(self._write_thread, self._memory.sync)


def _cause(error: BaseException) -> str:
    match error:
        case OutcomeUnknown():
            return "outcome_unknown"
        case Unsettled():
            return "unsettled"
        case TamperedRecord():
            return "history"
        case _:
            return "store_write"
