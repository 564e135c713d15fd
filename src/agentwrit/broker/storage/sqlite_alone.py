"""One unit of work on a database that no broker uses, at a time of the caller's choice."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from agentwrit.broker.storage import sql_log, sqlite_rows, sqlite_schema
from agentwrit.broker.storage.base import Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite_rows import SqliteTransaction
from agentwrit.domain.errors import ConfigurationError

T = TypeVar("T")


def last_time(path: Path, sealer: Sealer) -> float:
    """The highest time that was ever committed to the database in `path` (Unix seconds), or 0.

    Raises:
        ConfigurationError, TamperedRecord: as `sqlite_schema.open_database`.
    """
    with contextlib.closing(sqlite_schema.open_database(path, sealer)) as connection:
        return sqlite_schema.load_high_water_mark(connection)


def run_alone(path: Path, sealer: Sealer, unit: Callable[[Transaction], T], *, now: float) -> T:
    """Run a unit of work on the database in `path`, whose directory the caller has locked, and make it durable.

    `now`: Unix seconds. From then on they are the store's time, whatever that was before.

    Raises:
        ConfigurationError: the database cannot be used or written. Nothing was changed.
        TamperedRecord: it is not as the broker left it. Nothing was changed.
    """
    with contextlib.closing(sqlite_schema.open_database(path, sealer)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            saved = sqlite_rows.saved_head(connection, sealer)
            head = sql_log.load_head(connection, sealer, saved.last)
            transaction = SqliteTransaction(connection, sealer, head, now, covered=saved.covered)
            value = unit(transaction)
            for name, text in (
                (sqlite_rows.HEAD, sqlite_rows.sealed_head(sealer, transaction.head, transaction.covered)),
                (sqlite_schema.HIGH_WATER_MARK, repr(now)),
            ):
                connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, text))
            connection.commit()
        except sqlite3.Error as error:
            raise ConfigurationError(f"{path} cannot be written: {error}") from error
        return value
