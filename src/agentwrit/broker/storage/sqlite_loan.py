"""A SQLite store's database, lent to another process for a few commits.

The store has the say of who writes: while it lends, it writes nothing itself, and whoever is lent the database is told
what only the store remembers. They commit, and tell it where log and feed end then. A store that was opened since
(its broker was killed) has another name, which whoever is lent the database by the one before finds in it: so nobody
commits behind the back of a broker.
"""

import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from agentwrit.broker.storage import sql_log, sqlite_objects, sqlite_rows, sqlite_schema
from agentwrit.broker.storage.base import Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.spent_nonces import SpentNonces
from agentwrit.broker.storage.sql_batch import Changes
from agentwrit.broker.storage.sqlite_batch import SqliteBatch
from agentwrit.domain import audit
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.revocation import Revocation

T = TypeVar("T")

LOCK_TIMEOUT_MS: Final = 5000  # for a lock that something outside the broker holds


class Loan(NamedTuple):
    """What a store says of its database to whom it lends it.

    `writer`: its name there; `head` and `feed_head`: where the log and the feed end; `covered`: up to where a
    checkpoint covers the log; `now`: the time of what is committed (Unix seconds).
    """

    writer: str
    head: audit.Head
    feed_head: int
    covered: int
    now: float


class Returned(NamedTuple):
    """What whoever was lent the database says: where log and feed end by now, and what they have revoked."""

    head: audit.Head
    feed_head: int
    revocations: Sequence[Revocation]


class Recalled(Exception):
    """The database is another store's by now, or not as it was lent."""


class Borrower:
    """Commits to a database that another process has lent."""

    def __init__(self, path: Path, sealer: Sealer) -> None:
        self._sealer = sealer
        self._connection = sqlite_schema.connect(path, busy_timeout_ms=LOCK_TIMEOUT_MS)
        self._reader = sqlite_schema.connect(path, busy_timeout_ms=LOCK_TIMEOUT_MS)
        self._reader.execute("PRAGMA query_only = ON")
        self._schema = sqlite_objects.Watch(self._connection)
        self._thread = ThreadPoolExecutor(1, "sqlite-commit")

    def commit(
        self, loan: Loan, unit: Callable[[Transaction], T], *, is_last: Callable[[T], bool] = lambda value: True
    ) -> tuple[T, Returned]:
        """Run a unit of work, and commit it.

        Until it is the last, as `is_last` says of what the unit came to, it is run again meanwhile, and committed too.
        If that fails, what was committed before stays.

        Raises:
            Recalled: the database is not lent any more.
            TamperedRecord: it was altered outside the broker.
            sqlite3.Error: it cannot be written.
        """
        returned = Returned(loan.head, loan.feed_head, [])
        committing: Future[None] | None = None
        below: Changes | None = None
        try:
            while True:
                batch = self._batch(loan, returned, below)
                value = batch.apply(unit)
                before = returned.head
                returned = Returned(batch.head, batch.feed_head(), [*returned.revocations, *batch.revocations])
                batch.put_meta(sqlite_schema.HIGH_WATER_MARK, repr(loan.now))
                batch.put_meta(sqlite_rows.HEAD, sqlite_rows.sealed_head(self._sealer, batch.head, batch.covered))
                below, write = batch.changes, batch.writing()
                if committing is not None:
                    committing.result()
                below.below = None  # that is committed
                committing = self._thread.submit(self._write, loan.writer, before, write)
                if is_last(value):
                    committing.result()
                    return value, returned
        finally:
            if committing is not None:
                wait([committing])  # whatever happens, nothing is committed behind anybody's back

    def _batch(self, loan: Loan, ground: Returned, below: Changes | None) -> SqliteBatch:
        return SqliteBatch(
            self._reader,
            self._connection,
            self._sealer,
            spent=SpentNonces((), now=loan.now),
            head=ground.head,
            feed_head=ground.feed_head,
            covered=loan.covered,
            now=loan.now,
            below=below,
        )

    def _write(self, writer: str, head: audit.Head, write: Callable[[], object]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._schema.check()
            if sqlite_schema.writer(self._connection) != writer:
                raise Recalled("another broker has opened the database")
            if sqlite_rows.saved_head(self._connection, self._sealer).last != (head.sequence, head.hash):
                raise Recalled("something else was committed meanwhile")
            write()
            self._connection.commit()
        except BaseException:
            self._connection.rollback()
            raise

    def close(self) -> None:
        self._thread.shutdown()
        self._reader.close()
        self._connection.close()


def found(connection: sqlite3.Connection, sealer: Sealer, loan: Loan) -> Returned:
    """What was committed to a database that was lent to a process which does not tell any more.

    Raises:
        TamperedRecord: it was altered outside the broker.
    """
    saved = sqlite_rows.saved_head(connection, sealer)
    if saved.sequence < loan.head.sequence:
        raise TamperedRecord("the log is shorter than it was")
    if saved.last == (loan.head.sequence, loan.head.hash):
        return Returned(loan.head, loan.feed_head, ())
    snapshot = sqlite_rows.SqliteSnapshot(connection, sealer)
    feed_head = snapshot.feed_head()
    revocations = snapshot.feed(loan.feed_head + 1, feed_head)
    return Returned(sql_log.load_head(connection, sealer, saved.last), feed_head, revocations)
