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
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from agentwrit.broker.clock import Clock
from agentwrit.broker.measures import Measures
from agentwrit.broker.storage import sql_log, sql_units, sqlite_loan, sqlite_objects, sqlite_rows, sqlite_schema
from agentwrit.broker.storage.alternation import Alternation, Steps
from agentwrit.broker.storage.base import Cluster, RevocationListener, Row, Snapshot, Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.spent_nonces import SpentNonces
from agentwrit.broker.storage.sql_batch import Changes, NotInMemory
from agentwrit.broker.storage.sql_units import Outcome, Queue, Waiting
from agentwrit.broker.storage.sqlite_batch import SqliteBatch, is_stores_fault
from agentwrit.broker.storage.sqlite_loan import Loan, Returned
from agentwrit.broker.storage.sqlite_rows import SqliteSnapshot
from agentwrit.broker.storage.sqlite_wal import MAX_BYTES, WriteAheadLog
from agentwrit.domain import audit
from agentwrit.domain.errors import TamperedRecord, Unavailable
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
LONE_ROWS: Final = 16  # and so is what has no more rows than these
READERS: Final = 5

log = structlog.get_logger("agentwrit.storage")


class Ground(NamedTuple):
    """What a batch stands on: where the log and the feed end, and what of that is not in the database yet, if any.

    `covered`: up to where a checkpoint covers the log.
    """

    head: audit.Head
    feed_head: int
    covered: int
    changes: Changes | None = None


class Lent(NamedTuple):
    """Whoever waits to be lent the database: what they do with it, on the commit thread, and their answer to be."""

    use: Callable[[Loan], tuple[Any, Returned]]
    answer: asyncio.Future[Any]


class SqliteStore:
    """The `Store` of one broker process in the file `path`, whose directory the caller has locked.

    `cluster`: the name that the store's broker has to have, if it matters.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        sealer: Sealer,
        cluster: Cluster | None = None,
        *,
        lock_timeout_ms: int = LOCK_TIMEOUT_MS,
        max_log_bytes: int = MAX_BYTES,
    ) -> None:
        self._lock_timeout_ms = lock_timeout_ms
        self._path = path
        self._clock = clock
        self._sealer = sealer
        self._arrived = Queue(self._take_up)
        self._waiting: deque[Waiting] = deque()  # for the database, and whatever comes behind such
        self._open: SqliteBatch | None = None  # for the next commit: what comes is run in it
        self._to_lend: Lent | None = None
        self._has_lent = False  # lending and committing take turns
        self._astray: Loan | None = None  # since what a borrower has committed could not be found out
        self._is_shut = False  # while what comes has to wait
        self._listeners: list[RevocationListener] = []
        self._commit_seconds = float("inf")  # what the last one took
        self.measures = Measures()
        self.measures.is_in_charge = True
        self._is_writable = True
        self._is_closed = False
        self._commit_thread = ThreadPoolExecutor(1, "sqlite-commit")
        self._commits = Alternation(self._commit_thread)
        self._read_threads = ThreadPoolExecutor(READERS, "sqlite-read")
        self._reader = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._connection = sqlite_schema.open_database(path, sealer, cluster)
        try:
            self._schema = sqlite_objects.Watch(self._connection)
            sqlite_objects.check_indexes(self._connection)
            self._writer = sqlite_schema.take_over(self._connection)
            self._wal = WriteAheadLog(self._connection, path, max_bytes=max_log_bytes)
            saved = sqlite_rows.saved_head(self._connection, sealer)
            head = sql_log.load_head(self._connection, sealer, saved.last)
            feed_head = SqliteSnapshot(self._connection, sealer).feed_head()
            self._ground = Ground(head, feed_head, saved.covered)
            self.measures.log_head, self.measures.feed_head = head.sequence, feed_head
            self._saved_now = sqlite_schema.load_high_water_mark(self._connection)
            clock.resume(self._saved_now)
            self._committed = self._connect_reader()
        except BaseException:
            self._connection.close()
            raise
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
            raise Unavailable("the store cannot be read", cause="store_read") from error

    async def lend(self, use: Callable[[Loan], tuple[T, Returned]]) -> T:
        """Let another process write the database once. `use` has it do so, and waits for it, on the commit thread.

        To be called again when the last call has returned: one borrower is all that there is.

        Raises:
            Unavailable: `use` raised what is the error's cause, the database cannot be written, or the broker is
                stopping. What was committed all the same is known by then.
        """
        self._check_open()
        if self._to_lend is not None:
            raise Unavailable("somebody else is lent the database", cause="busy")
        lent = self._to_lend = Lent(use, asyncio.get_running_loop().create_future())
        if not self._commits.is_running:
            self._commits.start(self._commit_batches())
        return await lent.answer  # type: ignore[no-any-return]  # what its `use` returns

    def listen(self, listener: RevocationListener) -> None:
        self._listeners.append(listener)

    async def catch_up(self) -> None:
        """Nothing to wait for: all commits are ours."""
        self._check_open()

    async def is_in_charge(self) -> bool:
        return True

    def log_bytes(self) -> int:
        return self._wal.size

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
            raise Unavailable("the broker is stopping", cause="stopping")

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
            covered=self._ground.covered,
            now=self._clock.now(),
            below=self._ground.changes,
        )

    def _take_open(self) -> SqliteBatch | None:
        batch, self._open = self._open, None
        return batch

    def _commit_batches(self) -> Steps:
        while self._waiting or self._open is not None or self._to_lend is not None:
            if self._astray is not None and not (yield from self._have_found()):
                continue
            is_to_be_lent = self._is_to_be_lent()
            if is_to_be_lent and self._open is None:
                yield from self._lend()
            else:
                if is_to_be_lent:
                    self._is_shut = True  # what is there is committed first, and what comes now waits
                yield from self._commit_next()
            if self._wal.look():
                yield self._wal.fold_in
            self._wal.tell()

    def _commit_next(self) -> Steps:
        """Commit the batch that is next, or give it up."""
        ground = self._ground
        batch = self._take_open() or self._new_batch()
        try:
            yield from self._commit_batch(batch)
        except Exception as error:
            # Whatever it is: everyone who waits is answered, and nothing is kept, not of what stands on it either.
            if self._is_writable and isinstance(error, TamperedRecord):
                log.error("the store is not written any more: it was altered outside the broker", reason=str(error))
            self._is_writable = False
            self._ground = ground
            sql_units.fail(self._give_up(batch), "the store cannot be written", error)
            yield self._connection.rollback
            if not isinstance(error, (sqlite3.Error, TamperedRecord)):
                log.error("a commit failed by a defect", exc_info=error)  # and those who came meanwhile go on
        else:
            self._is_writable = True
            self.measures.log_head = self._ground.head.sequence
            self.measures.feed_head = self._ground.feed_head
            self._ground = self._ground._replace(changes=None)
            if self._open is not None:
                self._open.settle()
            self._announce(batch.revocations)
            sql_units.deliver(batch.outcomes)
        finally:
            self._is_shut = False

    def _is_to_be_lent(self) -> bool:
        """Whether it is a borrower's turn, and not that of what waits to be committed."""
        has_others = bool(self._waiting) or self._open is not None
        is_turn = self._to_lend is not None and not (self._has_lent and has_others)
        self._has_lent = False
        return is_turn

    def _lend(self) -> Steps:
        """Let a borrower commit. What comes meanwhile waits."""
        lent, self._to_lend = self._to_lend, None
        if lent is None or lent.answer.cancelled():
            return
        self._is_shut = self._has_lent = True
        loan = Loan(self._writer, self._ground.head, self._ground.feed_head, self._ground.covered, self._clock.now())
        done: list[tuple[Any, Returned]] = []
        try:
            yield lambda: done.append(self._use(lent, loan))
        except Exception as error:
            yield from self._have_found()
            sql_units.fail([lent.answer], "the store cannot be written", error)
        else:
            [(value, returned)] = done
            self._stand_on(returned, loan)
            sql_units.deliver([Outcome(lent.answer, value, None)])
        finally:
            self._is_shut = self._astray is not None

    def _use(self, lent: Lent, loan: Loan) -> tuple[Any, Returned]:
        started = time.monotonic()
        self._wal.check_room()
        self._astray = loan
        done = lent.use(loan)
        self._astray = None
        self.measures.commit.add(time.monotonic() - started)
        return done

    def _stand_on(self, returned: Returned, loan: Loan) -> None:
        """Go on from where a borrower has come to."""
        self._ground = Ground(returned.head, returned.feed_head, loan.covered)
        self._saved_now = max(self._saved_now, loan.now)
        self.measures.log_head, self.measures.feed_head = returned.head.sequence, returned.feed_head
        self._announce(returned.revocations)

    def _have_found(self) -> Generator[Callable[[], object], None, bool]:
        """Find out what a borrower has committed who does not tell. Returns whether that is known now."""
        loan, found = self._astray, list[Returned]()
        if loan is None:
            return True
        try:
            yield lambda: found.append(sqlite_loan.found(self._connection, self._sealer, loan))
        except Exception as error:
            self._is_writable = False
            lent, self._to_lend = self._to_lend, None
            answers = [each.answer for each in (*([lent] if lent is not None else []), *self._waiting, *self._arrived)]
            for each in (self._waiting, self._arrived):
                each.clear()
            sql_units.fail(answers, "the store cannot be written", error)
            return False
        self._astray = None
        self._is_shut = False
        self._stand_on(found[0], loan)
        return True

    def _commit_batch(self, batch: SqliteBatch) -> Steps:
        """Run the units that could not be run when they came, and make the batch durable."""
        written = self._connection.total_changes
        if self._waiting:
            yield from self._run_waiting(batch)
        is_changed = bool(batch.changes) or self._connection.total_changes != written
        if not is_changed and batch.now < self._saved_now + MAX_UNSAVED_SECONDS:
            self._connection.rollback()
            return
        batch.put_meta(sqlite_schema.HIGH_WATER_MARK, repr(batch.now))
        batch.put_meta(sqlite_rows.HEAD, sqlite_rows.sealed_head(self._sealer, batch.head, batch.covered))
        self._ground = Ground(batch.head, batch.feed_head(), batch.covered, batch.changes)
        rows = batch.changes.row_count + self._connection.total_changes - written
        is_small = len(batch.outcomes) == 1 and rows <= LONE_ROWS
        commit = partial(self._commit, batch.writing())
        is_quick = self._commit_seconds < LONE_SECONDS and not self._wal.is_large
        if is_small and is_quick and self._begin():
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
            if self._wal.is_full:
                return False
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            self._schema.check()
        return True

    def _begin_patiently(self) -> None:
        self._wal.check_room()
        self._connection.execute(f"PRAGMA busy_timeout = {self._lock_timeout_ms}")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        finally:
            self._connection.execute("PRAGMA busy_timeout = 0")
        self._schema.check()

    def _commit(self, write: Callable[[], object]) -> None:
        started = time.monotonic()
        if not self._begin():
            self._begin_patiently()
        write()
        self._connection.commit()
        self._commit_seconds = time.monotonic() - started
        self.measures.commit.add(self._commit_seconds)

    def _give_up(self, batch: SqliteBatch) -> list[asyncio.Future[Any]]:
        """Everyone who waits, for this batch or behind it: they wait no longer."""
        above = self._take_open()
        outcomes = batch.outcomes + (above.outcomes if above is not None else [])
        answers = [each.answer for each in outcomes]
        for waiting in (self._waiting, self._arrived):
            answers += [each.answer for each in waiting]
            waiting.clear()
        return answers

    def _announce(self, revocations: Sequence[Revocation]) -> None:
        if revocations:
            for listener in self._listeners:
                listener(revocations)

    # -- reading: each thread owns a connection -----------------------------------------------------------------------

    def _read(self, query: Callable[[Snapshot], T]) -> T:
        connection = getattr(self._reader, "connection", None)
        if connection is None:
            connection = self._reader.connection = self._connect_reader()
            self._readers.append(connection)
        self._wal.begins_to_read(connection)
        try:
            connection.execute("BEGIN")
            return query(SqliteSnapshot(connection, self._sealer))
        finally:
            self._wal.has_read(connection)
            connection.rollback()

    def _connect_reader(self) -> sqlite3.Connection:
        connection = sqlite_schema.connect(self._path, busy_timeout_ms=self._lock_timeout_ms)
        connection.execute("PRAGMA query_only = ON")
        return connection
