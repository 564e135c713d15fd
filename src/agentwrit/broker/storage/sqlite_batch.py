"""Units of work in memory, beside the database: a batch is written by few statements, off the loop.

Each statement gives up the interpreter's lock while it runs, and then has to win it back: so one inserts all rows of a
table, up to some number. Statements are kept for numbers of rows that are powers of two, and what is left of one is
filled with NULLs, which are not inserted.
"""

import sqlite3
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any, Final

from agentwrit.broker.storage import tables
from agentwrit.broker.storage.base import Row
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.spent_nonces import SpentNonces
from agentwrit.broker.storage.sql import Session
from agentwrit.broker.storage.sql_batch import (
    READ,
    Batch,
    BatchTransaction,
    Changes,
    Question,
)
from agentwrit.broker.storage.sql_units import Outcome, Waiting
from agentwrit.broker.storage.sqlite_rows import SqliteSnapshot, SqliteTransaction
from agentwrit.broker.storage.tables import Columns, Table
from agentwrit.domain import audit

MOST_ROWS: Final = 128  # of a statement

# What SQLite refuses because of what it was asked, and not of how it is.
UNITS_OWN_FAULT: Final = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    sqlite3.NotSupportedError,
)


def is_stores_fault(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and not isinstance(error, UNITS_OWN_FAULT)


@cache
def _insert(table: Table, rows: int) -> str:
    """What inserts so many rows, or replaces those that have the same key, and leaves out those of NULLs."""
    row = f"({', '.join('?' * len(table.columns))})"
    return (
        f"INSERT INTO {table.name} ({', '.join(table.columns)}) SELECT * FROM (VALUES {', '.join([row] * rows)})"
        f" WHERE column1 IS NOT NULL {table.on_conflict}"
    )


@cache
def _lookup(table: str) -> str:
    """The statement that reads what units in memory need of a row."""
    found = READ[table]
    return f"SELECT {', '.join(found.found_by_key)} FROM {table} WHERE {found.key[0]} = ?"


class SqliteBatchTransaction(BatchTransaction, SqliteSnapshot):
    """The `Transaction` of a unit in memory. `spent`: spares it a look into the database for each new nonce."""

    def __init__(self, batch: Batch, sealer: Sealer, spent: SpentNonces) -> None:
        super().__init__(batch, sealer)
        self._spent = spent

    def spend_nonce(self, nonce: bytes, expires_at: int) -> bool:
        if self._spent.may_hold(nonce):
            return super().spend_nonce(nonce, expires_at)
        self._spent.add(nonce, expires_at, now=self.now)
        self._put_nonce(nonce, expires_at)
        return True


class _DatabaseTransaction(SqliteTransaction):
    """The `Transaction` of a unit on the database, which tells `spent` what it spends."""

    def __init__(
        self, connection: Session, sealer: Sealer, head: audit.Head, now: float, *, covered: int, spent: SpentNonces
    ) -> None:
        super().__init__(connection, sealer, head, now, covered=covered)
        self._spent = spent

    def spend_nonce(self, nonce: bytes, expires_at: int) -> bool:
        self._spent.add(nonce, expires_at, now=self.now)
        return super().spend_nonce(nonce, expires_at)


class SqliteBatch(Batch):
    """Units that share a commit, on top of the batch before, which may be under way: `below` is what that one writes.

    They read by `reader`, which sees what is committed. What they write goes through `writer`, which may be another
    thread's by then. `outcomes`: what they came to, to be told when the commit is done.
    """

    def __init__(
        self,
        reader: sqlite3.Connection,
        writer: sqlite3.Connection,
        sealer: Sealer,
        *,
        spent: SpentNonces,
        head: audit.Head,
        feed_head: int,
        covered: int,
        now: float,
        below: Changes | None,
    ) -> None:
        super().__init__(writer, sealer, head=head, feed_head=feed_head, covered=covered, now=now, below=below)
        self.outcomes: list[Outcome] = []
        self._reader: Session = reader
        self._spent = spent

    def put_meta(self, name: str, value: str) -> None:
        """Write a row of `meta`."""
        self.changes.put(tables.META, (name, value))

    def settle(self) -> None:
        """The batch before this one is committed: what it has written is to be read from the database."""
        self.changes.below = None

    def run_on_database(self, waiting: Waiting, *, is_stores_fault: Callable[[Exception], bool]) -> Outcome:
        self._reader = self._session  # nobody else sees what is written on the database, until it is committed
        return super().run_on_database(waiting, is_stores_fault=is_stores_fault)

    def rows(self, wanted: Row | Question) -> Sequence[tuple[Any, ...]]:
        if isinstance(wanted, Question):
            return self._reader.execute(wanted.sql, wanted.values).fetchall()
        return self._reader.execute(_lookup(wanted.table), (wanted.key,)).fetchall()

    def _in_memory(self) -> BatchTransaction:
        return SqliteBatchTransaction(self, self._sealer, self._spent)

    def _on_database(self) -> SqliteTransaction:
        return _DatabaseTransaction(
            self._session, self._sealer, self.head, self.now, covered=self.covered, spent=self._spent
        )

    def _is_passed_on(self, error: Exception) -> bool:
        return super()._is_passed_on(error) or is_stores_fault(error)  # it reads the database

    def _writing(self, changes: Changes) -> Callable[[], object]:
        return partial(self._write, changes)

    def _write(self, changes: Changes) -> None:
        for table, rows in changes.rows.items():
            written = list(rows.values())
            for start in range(0, len(written), MOST_ROWS):
                self._write_rows(table, written[start : start + MOST_ROWS])

    def _write_rows(self, table: Table, rows: Sequence[Columns]) -> None:
        count = 1 << (len(rows) - 1).bit_length()
        values = list(chain.from_iterable(rows))
        values += [None] * (count * len(table.columns) - len(values))
        self._session.execute(_insert(table, count), values)
