"""Units of work in memory, beside the database: what a batch has written goes into it by one statement, off the loop.

Each statement gives up the interpreter's lock while it runs, and then has to win it back. One that writes all rows of a
batch does so once, and what it costs is another core's: only where there are few do the rows have a statement each. It
inserts a row of JSON into a view, whose trigger inserts the rows; bytes, which JSON does not have, travel beside it, in
one piece.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from agentwrit.broker.storage import sql_log
from agentwrit.broker.storage.base import Row
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.spent_nonces import SpentNonces
from agentwrit.broker.storage.sql import Session
from agentwrit.broker.storage.sql_batch import (
    READ,
    Batch,
    BatchTransaction,
    Changes,
    Columns,
    Question,
    replaced_by,
)
from agentwrit.broker.storage.sql_rows import GRANT_COLUMNS, on_conflict, upsert
from agentwrit.broker.storage.sql_units import Outcome, Waiting
from agentwrit.broker.storage.sqlite_rows import SqliteSnapshot, SqliteTransaction
from agentwrit.domain import audit

# The tables whose rows are written together. Of the usage of apps there is a row for each app: that is not worth it.
COLUMNS: Final[dict[str, Sequence[str]]] = {
    "launch_tokens": ("token_hash", "expires_at", "body", "mac"),
    "grants": (*GRANT_COLUMNS, "body", "mac"),
    "first_answers": ("key", "expires_at", "body", "mac"),
    "nonces": ("nonce", "expires_at"),
    "revocations": ("kind", "id", "effective_at", "last_exp", "mac", "seq"),
    "tiles": sql_log.TILE_COLUMNS,
    "events": sql_log.EVENT_COLUMNS,
    "meta": ("name", "value"),
}
FEW_ROWS: Final = 8  # what a unit writes: each by a statement of its own takes half as long
_BYTES: Final = {"token_hash", "body", "mac", "key", "nonce", "hashes"}

_WRITE: Final = f"INSERT INTO batch VALUES ({', '.join('?' * len(COLUMNS))}, ?)"
_NUL: Final = b"\\u0000"  # ends a text where SQLite reads one out of JSON

# What SQLite refuses because of what it was asked, and not of how it is.
UNITS_OWN_FAULT: Final = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    sqlite3.NotSupportedError,
)


def is_stores_fault(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and not isinstance(error, UNITS_OWN_FAULT)


def prepare(connection: sqlite3.Connection) -> None:
    """Let this connection write batches."""
    columns = ", ".join(f"NULL AS {name}" for name in (*COLUMNS, "bytes"))
    connection.execute(f"CREATE TEMP VIEW batch AS SELECT {columns}")
    inserts = "".join(f"{_insert(table)};" for table in COLUMNS)
    connection.execute(f"CREATE TEMP TRIGGER write_batch INSTEAD OF INSERT ON batch BEGIN {inserts} END")


def _insert(table: str) -> str:
    """What inserts the rows of a table. Each is an array: a value for each column, and where its bytes begin.

    In the place of bytes stands how many there are.
    """
    names = COLUMNS[table]
    values = []
    start = f"1 + (value ->> {len(names)})"
    for place, name in enumerate(names):
        if name in _BYTES:
            values.append(f"substr(NEW.bytes, {start}, value ->> {place})")
            start += f" + (value ->> {place})"
        else:
            values.append(f"value ->> {place}")
    return (
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(values)}"
        f" FROM json_each(NEW.{table}) WHERE TRUE ORDER BY key {on_conflict(replaced_by(table), names)}"
    )


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
        self, connection: Session, sealer: Sealer, head: audit.Head, now: float, *, spent: SpentNonces
    ) -> None:
        super().__init__(connection, sealer, head, now)
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
        now: float,
        below: Changes | None,
    ) -> None:
        super().__init__(writer, sealer, head=head, feed_head=feed_head, now=now, below=below)
        self.outcomes: list[Outcome] = []
        self._reader: Session = reader
        self._spent = spent

    def put_meta(self, name: str, value: str) -> None:
        """Write a row of `meta`."""
        self.changes.put("meta", {"name": name, "value": value})

    def settle(self) -> None:
        """The batch before this one is committed: what it has written is to be read from the database."""
        self.changes.below = None

    def run_on_database(self, waiting: Waiting, *, is_stores_fault: Callable[[Exception], bool]) -> Outcome:
        self._reader = self._session  # nobody else sees what is written on the database, until it is committed
        return super().run_on_database(waiting, is_stores_fault=is_stores_fault)

    def rows(self, wanted: Row | Question) -> Sequence[tuple[Any, ...]]:
        if isinstance(wanted, Question):
            return self._reader.execute(wanted.sql, wanted.values).fetchall()
        key, columns = READ[wanted.table]
        return self._reader.execute(f"SELECT {columns} FROM {wanted.table} WHERE {key} = ?", (wanted.key,)).fetchall()

    def _in_memory(self) -> BatchTransaction:
        return SqliteBatchTransaction(self, self._sealer, self._spent)

    def _on_database(self) -> SqliteTransaction:
        return _DatabaseTransaction(self._session, self._sealer, self.head, self.now, spent=self._spent)

    def _is_passed_on(self, error: Exception) -> bool:
        return super()._is_passed_on(error) or is_stores_fault(error)  # it reads the database

    def _writing(self, changes: Changes) -> Callable[[], object]:
        return partial(self._write, changes)

    def _write(self, changes: Changes) -> None:
        if sum(map(len, changes.rows.values())) <= FEW_ROWS:
            for table, rows in changes.rows.items():
                self._write_one_by_one(table, rows.values())
            return
        pieces: list[bytes] = []
        begin = 0
        forms: list[str | bytes] = []
        for table in changes.rows.keys() - COLUMNS.keys():
            self._write_one_by_one(table, changes.rows[table].values())
        for table in COLUMNS:
            arrays, begin = _arrays(table, changes.rows.get(table, {}).values(), pieces, begin)
            form = msgspec.json.encode(arrays)
            if _NUL in form:
                self._write_one_by_one(table, changes.rows[table].values())
                form = b"[]"
            forms.append(form.decode())
        self._session.execute(_WRITE, (*forms, b"".join(pieces)))

    def _write_one_by_one(self, table: str, rows: Iterable[Columns]) -> None:
        for row in rows:
            self._session.execute(upsert(table, replaced_by(table), tuple(row)), tuple(row.values()))


def _arrays(table: str, rows: Iterable[Columns], pieces: list[bytes], begin: int) -> tuple[list[list[object]], int]:
    """Rows as `_insert` reads them. Their bytes go behind `pieces`, at `begin`; returns where they end as well."""
    names = COLUMNS[table]
    of_bytes = [place for place, name in enumerate(names) if name in _BYTES]
    arrays = []
    for row in rows:
        array: list[Any] = [row[name] for name in names]
        array.append(begin)
        for place in of_bytes:
            pieces.append(array[place])
            array[place] = len(array[place])
            begin += array[place]
        arrays.append(array)
    return arrays, begin
