"""The embedded store: SQLite in WAL mode, one process, one writer, one commit for all who wait.

Units of work run at the end of the turn in which they come, on the event loop and in memory (`sqlite_batch`); writing
their rows and the COMMIT with its fsync are a thread's. While that commits one batch, the units that come are run in
the next, which sees what the one before has written although it is not in the database yet. So under load one fsync
serves many, and disk and loop hardly wait for each other. If a commit fails, what stands on it fails with it. (Running
the units on the thread too would be the obvious way, but each of their statements gives up the GIL, and a busy event
loop takes milliseconds to hand it back.)

What a unit cannot do in memory it does on the database, when no commit is under way; what comes before that is
committed waits, and is run in memory behind it. A unit that comes alone, on a disk that is quick, is committed without
a thread.

Readers have connections of their own on other threads: WAL lets them see the last commit while a writer writes.
"""

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import sql_log, sql_units, sqlite_batch, sqlite_rows, sqlite_schema
from agentwrit.broker.storage.alternation import Alternation, Steps
from agentwrit.broker.storage.base import RevocationListener, Row, Snapshot, Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.spent_nonces import SpentNonces
from agentwrit.broker.storage.sql_batch import Changes, NotInMemory
from agentwrit.broker.storage.sql_units import Outcome, Queue, Waiting
from agentwrit.broker.storage.sqlite_batch import SqliteBatch, is_stores_fault
from agentwrit.broker.storage.sqlite_rows import SqliteSnapshot
from agentwrit.domain import audit
from agentwrit.domain.errors import Unavailable
from agentwrit.domain.revocation import Revocation

T = TypeVar("T")

LOCK_TIMEOUT_MS: Final = 5000  # for a lock that something outside the broker holds
BATCH_SECONDS: Final = 0.004  # how long a batch may keep the event loop from everybody else
BATCH_SHARE: Final = 0.5  # of the time that its first unit had to wait: a busy loop has to spare more
MAX_BATCH_SECONDS: Final = 0.05
LONE_SECONDS: Final = 0.001  # below that, what one commits alone is done before a thread would have been told of it
MAX_UNSAVED_SECONDS: Final = 5  # how far time may be ahead of what is on disk when nothing else is written
AT_ONCE: Final = 64  # units that are run before anything else has its turn: one after the other they cost a tenth less
WORTH_A_COMMIT: Final = 16  # units: for so many the next commit begins before the event loop comes round to it
READERS: Final = 2


class Ground(NamedTuple):
    """What a batch stands on: where the log and the feed end, and what of that is not in the database yet, if any.

    `covered`: up to where a checkpoint covers the log.
    """

    head: audit.Head
    feed_head: int
    covered: int
    changes: Changes | None = None


class SqliteStore:
    """The `Store` of one broker process in the file `path`, whose directory the caller has locked."""

    def __init__(self, path: Path, clock: Clock, sealer: Sealer, *, lock_timeout_ms: int = LOCK_TIMEOUT_MS) -> None:
        self._lock_timeout_ms = lock_timeout_ms
        self._path = path
        self._clock = clock
        self._sealer = sealer
        self._arrived = Queue(self._take_up)
        self._waiting: deque[Waiting] = deque()  # for the database, and whatever comes behind such
        self._open: SqliteBatch | None = None  # for the next commit: what comes is run in it
        self._is_shut = False  # while what comes has to wait
        self._listeners: list[RevocationListener] = []
        self._commit_seconds = float("inf")  # what the last one took
        self._is_writable = True
        self._is_closed = False
        self._commit_thread = ThreadPoolExecutor(1, "sqlite-commit")
        self._commits = Alternation(self._commit_thread)
        self._read_threads = ThreadPoolExecutor(READERS, "sqlite-read")
        self._reader = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._connection = sqlite_schema.open_database(path, sealer)
        try:
            saved = sqlite_rows.saved_head(self._connection, sealer)
            head = sql_log.load_head(self._connection, sealer, saved.last)
            feed_head = SqliteSnapshot(self._connection, sealer).feed_head()
            self._ground = Ground(head, feed_head, sqlite_rows.covered(self._connection))
            sqlite_batch.prepare(self._connection)
            self._committed = self._connect_reader()
        except BaseException:
            self._connection.close()
            raise
        self._saved_now = sqlite_schema.load_high_water_mark(self._connection)
        clock.advance_to(self._saved_now)
        now = clock.now()
        self._spent = SpentNonces(sqlite_rows.spent_nonces(self._connection, now), now=now)

    async def write(self, unit: Callable[[Transaction], T], *, reads: Sequence[Row] = ()) -> T:
        self._check_open()
        is_run = len(self._open.outcomes) if self._open is not None else 0
        return await self._arrived.put(unit, reads, ahead=is_run + len(self._waiting))

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
        while self._arrived:
            self._take_up()
        await self._commits.over()
        self._commit_thread.shutdown()
        self._read_threads.shutdown()
        for connection in (*self._readers, self._committed, self._connection):
            connection.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable("the broker is stopping")

    # -- writing: the commit thread has the connection while it commits, and the event loop when it does not -----------

    def _take_up(self) -> None:
        """Run units that have come, and see to their commits. Not all, if they are many: others wait as well."""
        for _ in range(min(len(self._arrived), AT_ONCE)):
            waiting = self._arrived.popleft()
            if not waiting.answer.cancelled() and not self._run_in_memory(waiting):
                self._waiting.append(waiting)
            if self._open is not None and len(self._open.outcomes) >= WORTH_A_COMMIT:
                self._commits.catch_up()
        if not self._commits.is_running:
            self._commits.start(self._commit_batches())
        self._arrived.call()

    def _run_in_memory(self, waiting: Waiting) -> bool:
        """Run a unit for the next commit, in memory. Returns whether that was possible."""
        if self._is_shut:
            return False
        if self._open is None:
            self._open = self._new_batch()
        self._open.now = self._clock.now()
        try:
            self._open.outcomes.append(self._open.run(waiting))
        except (NotInMemory, sqlite3.Error):
            return False
        return True

    def _new_batch(self) -> SqliteBatch:
        return SqliteBatch(
            self._committed,
            self._connection,
            self._sealer,
            spent=self._spent,
            head=self._ground.head,
            feed_head=self._ground.feed_head,
            now=self._clock.now(),
            below=self._ground.changes,
        )

    def _take_open(self) -> SqliteBatch | None:
        batch, self._open = self._open, None
        return batch

    def _commit_batches(self) -> Steps:
        while self._waiting or self._open is not None:
            ground = self._ground
            batch = self._take_open() or self._new_batch()
            try:
                yield from self._commit_batch(batch)
            except Exception as error:
                # Whatever it is: everyone who waits is answered, and nothing is kept, not of what stands on it either.
                self._is_writable = False
                self._ground = ground
                sql_units.fail(self._give_up(batch), "the store cannot be written", error)
                yield self._connection.rollback
                if not isinstance(error, sqlite3.Error):
                    raise
            else:
                self._is_writable = True
                self._ground = self._ground._replace(changes=None)
                if self._open is not None:
                    self._open.settle()
                self._announce(batch.revocations)
                sql_units.deliver(batch.outcomes)
            finally:
                self._is_shut = False

    def _commit_batch(self, batch: SqliteBatch) -> Steps:
        """Run the units that could not be run when they came, and make the batch durable."""
        written = self._connection.total_changes
        if self._waiting:
            yield from self._run_waiting(batch)
        is_changed = bool(batch.changes) or self._connection.total_changes != written
        if not is_changed and batch.now < self._saved_now + MAX_UNSAVED_SECONDS:
            self._connection.rollback()
            return
        covered = sqlite_rows.covered(self._connection) if self._is_shut else self._ground.covered
        batch.put_meta(sqlite_schema.HIGH_WATER_MARK, repr(batch.now))
        batch.put_meta(sqlite_rows.HEAD, sqlite_rows.sealed_head(self._sealer, batch.head, covered))
        self._ground = Ground(batch.head, batch.feed_head(), covered, batch.changes)
        commit = partial(self._commit, batch.writing())
        if len(batch.outcomes) == 1 and self._commit_seconds < LONE_SECONDS and self._begin():
            commit()
        else:
            yield commit
        self._saved_now = batch.now

    def _run_waiting(self, batch: SqliteBatch) -> Steps:
        """Run waiting units, on the database where they need it, for as long as the event loop can be spared."""
        batch.now = self._clock.now()
        started = time.monotonic()
        waited = started - self._waiting[0].since
        stop_at = started + min(max(BATCH_SECONDS, BATCH_SHARE * waited), MAX_BATCH_SECONDS)
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.answer.cancelled():
                # Entered before it is run, so that it is answered even if the store fails under it.
                batch.outcomes.append(Outcome(waiting.answer, None, None))
                try:
                    batch.outcomes[-1] = batch.run(waiting)
                except NotInMemory:
                    self._is_shut = True  # what is written there is seen by nobody else, until it is committed
                    if not self._begin():
                        yield self._begin_patiently
                    batch.outcomes[-1] = batch.run_on_database(waiting, is_stores_fault=is_stores_fault)
            if time.monotonic() >= stop_at:
                break

    def _begin(self) -> bool:
        """Take the write lock, which is free unless somebody looks in from outside. Returns whether it was."""
        if not self._connection.in_transaction:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True

    def _begin_patiently(self) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {self._lock_timeout_ms}")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        finally:
            self._connection.execute("PRAGMA busy_timeout = 0")

    def _commit(self, write: Callable[[], object]) -> None:
        started = time.monotonic()
        if not self._begin():
            self._begin_patiently()
        write()
        self._connection.commit()
        self._commit_seconds = time.monotonic() - started

    def _give_up(self, batch: SqliteBatch) -> list[asyncio.Future[Any]]:
        """Everyone who waits, for this batch or behind it: they wait no longer."""
        above = self._take_open()
        outcomes = batch.outcomes + (above.outcomes if above is not None else [])
        answers = [each.answer for each in outcomes]
        for waiting in (self._waiting, self._arrived):
            answers += [each.answer for each in waiting]
            waiting.clear()
        return answers

    def _announce(self, revocations: list[Revocation]) -> None:
        if revocations:
            for listener in self._listeners:
                listener(revocations)

    # -- reading: each thread owns a connection -----------------------------------------------------------------------

    def _read(self, query: Callable[[Snapshot], T]) -> T:
        connection = getattr(self._reader, "connection", None)
        if connection is None:
            connection = self._reader.connection = self._connect_reader()
            self._readers.append(connection)
        connection.execute("BEGIN")
        try:
            return query(SqliteSnapshot(connection, self._sealer))
        finally:
            connection.rollback()

    def _connect_reader(self) -> sqlite3.Connection:
        connection = sqlite_schema.connect(self._path, busy_timeout_ms=self._lock_timeout_ms)
        connection.execute("PRAGMA query_only = ON")
        return connection
