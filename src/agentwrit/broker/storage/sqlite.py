"""The embedded store: SQLite in WAL mode, one process, one writer, one commit for all who wait.

Units of work run on the event loop, one after the other, in memory as far as they can (`sqlite_batch`); writing their
rows and the COMMIT with its fsync are a thread's. While that runs the next units gather, so under load one fsync serves
many. (Running the units on the thread too would be the obvious way, but each of their statements gives up the GIL, and
a busy event loop takes milliseconds to hand it back.) A unit that comes alone, on a disk that is quick, is committed
without a thread.

Readers have connections of their own on other threads: WAL lets them see the last commit while a writer writes.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import sql_log, sql_units, sqlite_batch, sqlite_rows, sqlite_schema
from agentwrit.broker.storage.base import RevocationListener, Row, Snapshot, Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql_batch import NotInMemory
from agentwrit.broker.storage.sql_units import Outcome, Queue
from agentwrit.broker.storage.sqlite_batch import SqliteBatch, is_stores_fault
from agentwrit.broker.storage.sqlite_rows import SqliteSnapshot
from agentwrit.domain.errors import Unavailable
from agentwrit.domain.revocation import Revocation

T = TypeVar("T")

LOCK_TIMEOUT_MS: Final = 5000  # for a lock that something outside the broker holds
BATCH_SECONDS: Final = 0.004  # how long a batch may keep the event loop from everybody else
BATCH_SHARE: Final = 0.5  # of the time that its first unit had to wait: a busy loop has to spare more
MAX_BATCH_SECONDS: Final = 0.05
LONE_SECONDS: Final = 0.001  # below that, what one commits alone is done before a thread would have been told of it
MAX_UNSAVED_SECONDS: Final = 5  # how far time may be ahead of what is on disk when nothing else is written
READERS: Final = 2


class SqliteStore:
    """The `Store` of one broker process in the file `path`, whose directory the caller has locked."""

    def __init__(self, path: Path, clock: Clock, sealer: Sealer, *, lock_timeout_ms: int = LOCK_TIMEOUT_MS) -> None:
        self._lock_timeout_ms = lock_timeout_ms
        self._path = path
        self._clock = clock
        self._sealer = sealer
        self._waiting = Queue(self._commit_all)
        self._listeners: list[RevocationListener] = []
        self._commit_seconds = float("inf")  # what the last one took
        self._is_writable = True
        self._is_closed = False
        self._commit_thread = ThreadPoolExecutor(1, "sqlite-commit")
        self._read_threads = ThreadPoolExecutor(READERS, "sqlite-read")
        self._reader = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._connection = sqlite_schema.open_database(path, sealer)
        try:
            self._head = sql_log.load_head(
                self._connection, sealer, sqlite_rows.saved_head(self._connection, sealer).last
            )
            sqlite_batch.prepare(self._connection)
        except BaseException:
            self._connection.close()
            raise
        self._saved_now = sqlite_schema.load_high_water_mark(self._connection)
        clock.advance_to(self._saved_now)

    async def write(self, unit: Callable[[Transaction], T], *, reads: Sequence[Row] = ()) -> T:
        self._check_open()
        return await self._waiting.put(unit, reads)

    async def read(self, query: Callable[[Snapshot], T]) -> T:
        self._check_open()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._read_threads, self._read, query)
        except sqlite3.Error as error:
            raise Unavailable("the store cannot be read") from error

    def listen(self, listener: RevocationListener) -> None:
        self._listeners.append(listener)

    async def catch_up(self) -> None:
        """Nothing to wait for: all commits are ours."""
        self._check_open()

    async def is_in_charge(self) -> bool:
        return True

    def is_writable(self) -> bool:
        return self._is_writable and not self._is_closed

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        await self._waiting.finish()
        self._commit_thread.shutdown()
        self._read_threads.shutdown()
        for reader in self._readers:
            reader.close()
        self._connection.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable("the broker is stopping")

    # -- writing: the event loop owns the connection, but during a COMMIT the commit thread does ----------------------

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            outcomes: list[Outcome] = []
            try:
                await self._begin()
                batch = SqliteBatch(self._connection, self._sealer, self._head, self._clock.now())
                has_changes = self._run_batch(batch, outcomes)
                end = partial(self._commit, batch.writing()) if has_changes else self._connection.rollback
                if len(outcomes) == 1 and not self._waiting and self._commit_seconds < LONE_SECONDS:
                    end()
                else:
                    await loop.run_in_executor(self._commit_thread, end)
            except BaseException as error:
                # Whatever it is: everyone who waits is answered, and nothing of the batch is kept.
                self._is_writable = False
                answers = [outcome.answer for outcome in outcomes] or self._give_up_waiting()
                sql_units.fail(answers, "the store cannot be written", error)
                await loop.run_in_executor(self._commit_thread, self._connection.rollback)
                if not isinstance(error, sqlite3.Error):
                    raise
            else:
                self._is_writable = True
                self._head = batch.head
                self._saved_now = batch.now if has_changes else self._saved_now
                self._announce(batch.revocations)
                sql_units.deliver(outcomes)

    async def _begin(self) -> None:
        """Take the write lock. The broker is its only user, so it is free, unless somebody looks in from outside."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            await asyncio.get_running_loop().run_in_executor(self._commit_thread, self._begin_patiently)

    def _begin_patiently(self) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {self._lock_timeout_ms}")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        finally:
            self._connection.execute("PRAGMA busy_timeout = 0")

    def _give_up_waiting(self) -> list[asyncio.Future[Any]]:
        """Take everyone who waits from the queue."""
        answers = [waiting.answer for waiting in self._waiting]
        self._waiting.clear()
        return answers

    def _commit(self, write: Callable[[], object]) -> None:
        started = time.monotonic()
        write()
        self._connection.commit()
        self._commit_seconds = time.monotonic() - started

    def _run_batch(self, batch: SqliteBatch, outcomes: list[Outcome]) -> bool:
        """Run waiting units in one transaction, for as long as the event loop can be spared.

        Returns whether there is anything to commit.
        """
        changes = self._connection.total_changes
        started = time.monotonic()
        waited = started - self._waiting[0].since if self._waiting else 0
        stop_at = started + min(max(BATCH_SECONDS, BATCH_SHARE * waited), MAX_BATCH_SECONDS)
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.answer.cancelled():
                # Entered before it is run, so that it is answered even if the store fails under it.
                outcomes.append(Outcome(waiting.answer, None, None))
                try:
                    outcomes[-1] = batch.run(waiting)
                except NotInMemory:
                    outcomes[-1] = batch.run_on_database(waiting, is_stores_fault=is_stores_fault)
            if time.monotonic() >= stop_at:
                break
        is_changed = batch.changes or self._connection.total_changes != changes
        if not is_changed and batch.now < self._saved_now + MAX_UNSAVED_SECONDS:
            return False
        sqlite_schema.save_high_water_mark(self._connection, batch.now)
        sqlite_rows.save_head(self._connection, self._sealer, batch.head)
        return True

    def _announce(self, revocations: list[Revocation]) -> None:
        if revocations:
            for listener in self._listeners:
                listener(revocations)

    # -- reading: each thread owns a connection -----------------------------------------------------------------------

    def _read(self, query: Callable[[Snapshot], T]) -> T:
        connection = getattr(self._reader, "connection", None)
        if connection is None:
            connection = sqlite_schema.connect(self._path, busy_timeout_ms=self._lock_timeout_ms)
            connection.execute("PRAGMA query_only = ON")
            self._reader.connection = connection
            self._readers.append(connection)
        connection.execute("BEGIN")
        try:
            return query(SqliteSnapshot(connection, self._sealer))
        finally:
            connection.rollback()
