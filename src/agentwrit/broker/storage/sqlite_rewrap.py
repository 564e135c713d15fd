"""Moving a SQLite store to another master key (see `sql_rewrap`)."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import sql_log, sql_rewrap, sqlite_rows, sqlite_schema
from agentwrit.broker.storage.sql_rewrap import Keys
from agentwrit.broker.storage.sqlite_rows import SqliteTransaction
from agentwrit.domain.audit_export import Progress, unwatched
from agentwrit.domain.errors import ConfigurationError

CACHE_KIB: Final = 65_536  # what is changed beyond that is in the write-ahead log

_PLACES: Final = {"launch_tokens": "rowid", "grants": "rowid", "first_answers": "rowid", "tiles": "rowid"}


def rewrap(path: Path, keys: Keys, clock: Clock, *, progress: Progress = unwatched) -> int:
    """Move the database `path`, whose directory the caller has locked. Returns how many rows that were.

    Raises:
        TamperedRecord: a row, or the end of the audit log, is not the broker's. Nothing was changed.
        ConfigurationError: the database cannot be used, or written. Nothing was changed.
    """
    with contextlib.closing(sqlite_schema.open_database(path, keys.old)) as connection:
        try:
            return _rewrap(connection, keys, clock, progress)
        except sqlite3.Error as error:
            raise ConfigurationError(f"{path} cannot be moved to the new master key: {error}") from error


def _rewrap(connection: sqlite3.Connection, keys: Keys, clock: Clock, progress: Progress) -> int:
    connection.execute("PRAGMA secure_delete = ON")  # what was wrapped under the old key is not to stay behind
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute("BEGIN IMMEDIATE")
    saved = sqlite_rows.saved_head(connection, keys.old)
    head = sql_log.load_head(connection, keys.old, saved.last)
    rows = sql_rewrap.move(connection, connection.executemany, keys, _PLACES, progress=progress)
    clock.advance_to(sqlite_schema.load_high_water_mark(connection))
    transaction = SqliteTransaction(connection, keys.new, head, clock.now(), covered=saved.covered)
    transaction.record(sql_rewrap.event(rows))
    for name, value in (
        (sqlite_rows.HEAD, sqlite_rows.sealed_head(keys.new, transaction.head, transaction.covered)),
        (sqlite_schema.HIGH_WATER_MARK, repr(transaction.now)),
        (sqlite_schema.SEALED_BY, keys.new.name),
        (sqlite_schema.SEALED_BEFORE, keys.old.name),
    ):
        connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value))
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return rows
